#!/usr/bin/env bash
# Run `verify`, `predict` and a short `bench` on aarch64, in a Debian root under qemu:
#
#     tools/checks/arm64/check.sh [--clean] [BUNDLE|RUN]
#
# Checks that the aarch64 wheels give the labels of the golden images: onnxruntime's, and those of each
# other runtime that the bundle has variants for, installed alone. A variant that is refused or crashes
# does not stop the others; a table ends the output, and the check fails if a variant in REQUIRED of
# results.py does not work. Times under emulation are meaningless and labelled as emulated. Without an
# argument, a small model is trained and exported, in the formats of the runtimes that are installed here.
# The results stay in $EDGETL_ARM64/results; after an interruption, results.py prints those so far.
# The root is built once, in $EDGETL_ARM64 (default: ~/.cache/edgetl/arm64); --clean rebuilds it.
# $EDGETL_MIRROR sets the Debian mirror if apt has none, $EDGETL_SUITE its release (default: trixie).
# $QEMU_CPU sets the processors; by default cortex-a72, and neoverse-n1 with dot products.
# $EDGETL_RUNTIMES limits the check to some runtimes, for example "openvino litert".
set -euo pipefail
checkout=$(cd "$(dirname "$0")/../../.." && pwd)
cache=${EDGETL_ARM64:-${XDG_CACHE_HOME:-$HOME/.cache}/edgetl/arm64}
root=$cache/root
results=$cache/results
python=${PYTHON:-python3}
packages=(python3 libgomp1 libstdc++6)
cores="cortex-a72 neoverse-n1"

fail() {
    echo "check.sh: $1" >&2
    exit 1
}

log() { echo "== $1" >&2; }

[ "${1:-}" = --clean ] && { rm -rf "$cache"; shift; }
for tool in apt-get dpkg-deb unshare chroot; do
    command -v "$tool" >/dev/null || fail "$tool not found. Run this check on Debian or Ubuntu."
done

# aarch64 programs run natively, with a handler already registered in the kernel, or with a handler
# registered by this script in its own namespace.
emulator=
if [ "$(uname -m)" != aarch64 ]; then
    emulator=$(command -v qemu-aarch64-static) || fail "qemu-aarch64-static not found. Run: apt-get install qemu-user-static."
fi
if [ "$(uname -m)" = aarch64 ] || grep -qs '^flags:.*F' /proc/sys/fs/binfmt_misc/qemu-aarch64; then
    register_handler=
elif unshare -rm mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc 2>/dev/null; then
    register_handler=1
else
    fail "cannot run aarch64 programs. Run: apt-get install binfmt-support (not needed from Linux 6.7)."
fi

build_root() {
    log "Downloading Debian packages for arm64"
    local apt=$cache/apt suite options
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/state"
    touch "$apt/state/status"
    options=(-qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "Dir::State=$apt" -o "Dir::State::status=$apt/state/status"
        -o "Dir::Cache=$apt" -o APT::Sandbox::User= -o Acquire::Languages=none -o Debug::NoLocking=1)
    if [ -n "${EDGETL_MIRROR:-}" ]; then
        suite=${EDGETL_SUITE:-trixie}
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $EDGETL_MIRROR $suite main" >"$apt/sources.list"
        options+=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=-)
    fi
    apt-get "${options[@]}" update || fail "cannot reach a mirror with arm64. Set EDGETL_MIRROR to a Debian mirror."
    # Unpacking is enough for Python; configuring would run under emulation.
    apt-get "${options[@]}" install -y --download-only --no-install-recommends "${packages[@]}" >/dev/null ||
        fail "no arm64 packages found in apt's mirror. Set EDGETL_MIRROR to a Debian mirror."
    rm -rf "$root.partial"
    mkdir -p "$root.partial"
    for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$root.partial"; done
    mkdir -p "$root.partial"/{proc,sys,dev,tmp,work}
    mv "$root.partial" "$root"
}

# Install edgetl with one extra into its own folder. pip runs on the host and downloads wheels for
# aarch64 and the Python version of the root.
install_edgetl() {
    local extra=$1 version wheels=() glibc
    log "Installing edgetl[$extra] with aarch64 wheels"
    version=$(basename "$(find "$root/usr/bin" -name 'python3.*[0-9]' | head -n 1)")
    for glibc in $(seq "$(root_glibc)" -1 17); do wheels+=(--platform "manylinux_2_${glibc}_aarch64"); done
    rm -rf "$cache/edgetl.partial"
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$cache/edgetl.partial" "${wheels[@]}" \
        --platform manylinux2014_aarch64 --python-version "${version#python}" --implementation cp --only-binary=:all: \
        -c "$checkout/constraints.txt" "${checkout}[$extra]" || return 1
    rm -rf "$root/opt/$extra"
    mkdir -p "$root/opt"
    mv "$cache/edgetl.partial" "$root/opt/$extra"
}

# Print the minor version of the root's glibc, which limits the wheels.
root_glibc() {
    grep -ao 'stable release version 2\.[0-9]*' "$(find "$root/usr/lib" "$root/lib" -name libc.so.6 2>/dev/null | head -n 1)" | cut -d. -f2
}

# Print /proc/cpuinfo of the emulated core. onnxruntime reads it, and crashes on that of the host,
# which qemu before 8.1 passes through.
cpuinfo() {
    local number part=0xd08 features="fp asimd evtstrm crc32 cpuid"
    case $1 in neoverse-n1) part=0xd0c features="$features atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp" ;; esac
    for ((number = 0; number < $(nproc); number++)); do
        printf 'processor\t: %d\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\n' "$number" "$features"
        printf 'CPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 3\n\n' "$part"
    done
}

# Run Python in the root with the packages of an extra, in temporary namespaces, so that mounts and the handler do not leak.
run_python() {
    local core=$1 extra=$2
    shift 2
    cpuinfo "$core" >"$cache/cpuinfo"
    # shellcheck disable=SC2016  # expanded by the inner shell
    REGISTER_HANDLER=$register_handler EMULATOR=$emulator ROOT=$root BUNDLE=$bundle CPUINFO=$cache/cpuinfo QEMU_CPU=$core PYTHONPATH=/opt/$extra \
        EDGETL_EMULATED=${emulator:+1} PYTHONDONTWRITEBYTECODE=1 HOME=/tmp NO_COLOR=1 COLUMNS=140 unshare -rm bash -ec '
        if [ -n "$REGISTER_HANDLER" ]; then
            mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
            zeros="\x00\x00\x00\x00\x00\x00\x00\x00" ones="\xff\xff\xff\xff\xff\xff\xff"
            printf "%s" ":edgetl-aarch64:M::\x7fELF\x02\x01\x01\x00$zeros\x02\x00\xb7\x00:$ones\x00$ones\xff\xfe\xff\xff\xff:$EMULATOR:F" \
                >/proc/sys/fs/binfmt_misc/register
        fi
        for folder in proc sys dev; do mount --rbind "/$folder" "$ROOT/$folder"; done
        [ -z "$EMULATOR" ] || mount --bind "$CPUINFO" "$ROOT/proc/cpuinfo"
        mount --bind "$BUNDLE" "$ROOT/work"
        mount -t tmpfs tmpfs "$ROOT/tmp"
        cd /
        exec chroot "$ROOT" /usr/bin/python3 "$@"' bash "$@"
}

# Print why the packages of an extra are not that runtime alone. The root has no other packages.
find_foreign_packages() {
    local runtime=$1 extra=$2 package
    for package in torch onnx onnxruntime; do
        case $runtime,$package in executorch,torch | onnxruntime,onnxruntime) continue ;; esac
        [ ! -e "$root/opt/$extra/$package" ] || echo "edgetl[$extra] installs $package"
    done
}

# Run a command in the root and write its output and exit status to FILE and FILE's .status.
record() {
    local file=$1 status=0
    shift
    run_python "$@" >"$file" || status=$?
    echo "$status" >"${file%.*}.status"
    return "$status"
}

# Run one runtime on every core. A variant that fails does not stop the others.
check_runtime() {
    local runtime=$1 extra=$2 core variant folder
    shift 2
    for core in ${QEMU_CPU:-$cores}; do
        folder=$results/$runtime/$core
        mkdir -p "$folder"
        log "verify on aarch64, $runtime, $core"
        record "$folder/verify.json" "$core" "$extra" -m edgetl verify /work --json || true
        for variant in "$@"; do
            log "predict on aarch64, $variant, $core"
            record "$folder/$variant.csv" "$core" "$extra" -c 'import glob, sys; from edgetl.cli.app import main
sys.argv = ["edgetl", "predict", "/work", *sorted(glob.glob("/work/golden/[0-9]*")), "--csv", "-k", "1", *sys.argv[1:]]; main()' \
                --runtime "$runtime" --variant "$variant" || true
        done
    done
    log "bench on aarch64, $runtime, $core, a few runs"
    run_python "$core" "$extra" /opt/bench.py /work "$runtime" || failed+=("bench of $runtime")
}

[ -e "$root/usr/bin/python3" ] || build_root
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ $# -gt 0 ]; then
    bundle=$(realpath "$1")
    [ ! -f "$bundle/bundle/bundle.json" ] || bundle=$bundle/bundle
    [ -f "$bundle/bundle.json" ] || fail "no bundle found in $1. Run edgetl export first."
else
    log "Training and exporting a small model"
    (cd "$checkout" && "$python" -m tools.checks.device_install --export "$scratch" >/dev/null)
    bundle=$scratch/run/bundle
fi
mkdir -p "$root/opt"
cp "$checkout/tools/checks/arm64/bench.py" "$root/opt/"

rm -rf "$results"
failed=() checked=0
(cd "$checkout" && "$python" -m tools.checks.arm64.results "$bundle") >"$scratch/runtimes"
while read -r runtime extra variants <&3; do
    [[ " ${EDGETL_RUNTIMES:-$runtime} " == *" $runtime "* ]] || continue
    checked=1
    mkdir -p "$results/$runtime"
    if ! install_edgetl "$extra"; then
        echo "not installed: no aarch64 wheels" >"$results/$runtime/error"
        continue
    fi
    foreign=$(find_foreign_packages "$runtime" "$extra")
    [ -z "$foreign" ] || failed+=("$foreign")
    # shellcheck disable=SC2086  # names of variants
    check_runtime "$runtime" "$extra" $variants
done 3<"$scratch/runtimes"
[ $checked = 1 ] || fail "the bundle has no variant for ${EDGETL_RUNTIMES:-any runtime}. Export it with --format."
log "Results"
(cd "$checkout" && "$python" -m tools.checks.arm64.results "$bundle" "$results") || failed+=("a required variant")
[ ${#failed[@]} -eq 0 ] || fail "failed on aarch64: $(printf '%s; ' "${failed[@]}")"
