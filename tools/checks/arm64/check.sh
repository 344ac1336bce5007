#!/usr/bin/env bash
# `verify`, `predict` and a short `bench` on aarch64, in a Debian of its own under qemu: tools/checks/arm64/check.sh [--clean] [BUNDLE|RUN]
#
# What it tells is whether the aarch64 wheels give this machine's answers; times under emulation are nobody's, and are labelled so.
# Without an argument a small run is trained and exported. The root lies in $EDGETL_ARM64 (~/.cache/edgetl/arm64) and is built once;
# --clean builds it anew. $EDGETL_MIRROR names Debian's mirror where apt has none, with its release in $EDGETL_SUITE (trixie).
# $QEMU_CPU chooses the processor: cortex-a72, and neoverse-n1 with dot products, are played otherwise.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/../../.." && pwd)
cache=${EDGETL_ARM64:-${XDG_CACHE_HOME:-$HOME/.cache}/edgetl/arm64}
root=$cache/root
python=${PYTHON:-python3}
packages=(python3 libgomp1 libstdc++6)
cores="cortex-a72 neoverse-n1"

lacks() {
    echo "check.sh: $1" >&2
    exit 1
}

say() { echo "== $1" >&2; }

[ "${1:-}" = --clean ] && { rm -rf "$cache"; shift; }
for tool in apt-get dpkg-deb unshare chroot; do
    command -v "$tool" >/dev/null || lacks "$tool is needed, which Debian and Ubuntu have."
done

# How aarch64 programs are run: as they are, by what is registered with the kernel already, or by a registration that only this script sees.
emulator=
if [ "$(uname -m)" != aarch64 ]; then
    emulator=$(command -v qemu-aarch64-static) || lacks "qemu-aarch64-static is missing: apt-get install qemu-user-static."
fi
if [ "$(uname -m)" = aarch64 ] || grep -qs '^flags:.*F' /proc/sys/fs/binfmt_misc/qemu-aarch64; then
    own_handler=
elif unshare -rm mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc 2>/dev/null; then
    own_handler=1
else
    lacks "no aarch64 program starts here: apt-get install binfmt-support registers qemu; from Linux 6.7 on nothing is needed."
fi

build_root() {
    say "Debian's packages for arm64"
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
    apt-get "${options[@]}" update || lacks "apt reaches no mirror with arm64: name one of Debian in EDGETL_MIRROR."
    # Unpacked, not configured: Python runs without, and nothing has to run under emulation for it.
    apt-get "${options[@]}" install -y --download-only --no-install-recommends "${packages[@]}" >/dev/null ||
        lacks "apt's mirror has no arm64 packages: name one of Debian in EDGETL_MIRROR."
    rm -rf "$root.partial"
    mkdir -p "$root.partial"
    for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$root.partial"; done
    mkdir -p "$root.partial"/{proc,sys,dev,tmp,work}
    mv "$root.partial" "$root"
}

# The wheels are aarch64's own and of that Python's version; pip itself runs here.
install_edgetl() {
    say "edgetl[cpu] with aarch64 wheels"
    local version wheels=()
    version=$(basename "$(find "$root/usr/bin" -name 'python3.*[0-9]' | head -n 1)")
    for glibc in 2_28 2_27 2_17; do wheels+=(--platform "manylinux_${glibc}_aarch64"); done
    rm -rf "$cache/edgetl.partial"
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$cache/edgetl.partial" "${wheels[@]}" \
        --platform manylinux2014_aarch64 --python-version "${version#python}" --implementation cp --only-binary=:all: \
        -c "$checkout/constraints.txt" "${checkout}[cpu]"
    rm -rf "$root/opt/edgetl"
    mkdir -p "$root/opt"
    mv "$cache/edgetl.partial" "$root/opt/edgetl"
    cp "$checkout/tools/checks/arm64/bench.py" "$root/opt/"
}

# What a kernel on such a core shows: onnxruntime reads it, and crashes on another family's, which qemu before 8.1 lets through.
cpuinfo() {
    local number part=0xd08 features="fp asimd evtstrm crc32 cpuid"
    case $1 in neoverse-n1) part=0xd0c features="$features atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp" ;; esac
    for ((number = 0; number < $(nproc); number++)); do
        printf 'processor\t: %d\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\n' "$number" "$features"
        printf 'CPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 3\n\n' "$part"
    done
}

# Runs in the root, in namespaces that end with it: nothing is mounted or registered outside.
inside() {
    local core=$1
    shift
    cpuinfo "$core" >"$cache/cpuinfo"
    # shellcheck disable=SC2016  # for the inner shell
    OWN_HANDLER=$own_handler EMULATOR=$emulator ROOT=$root BUNDLE=$bundle CPUINFO=$cache/cpuinfo QEMU_CPU=$core PYTHONPATH=/opt/edgetl \
        EDGETL_EMULATED=${emulator:+1} PYTHONDONTWRITEBYTECODE=1 HOME=/tmp NO_COLOR=1 COLUMNS=140 unshare -rm bash -ec '
        if [ -n "$OWN_HANDLER" ]; then
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

[ -e "$root/usr/bin/python3" ] || build_root
install_edgetl
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ $# -gt 0 ]; then
    bundle=$(realpath "$1")
    [ ! -f "$bundle/bundle/bundle.json" ] || bundle=$bundle/bundle
    [ -f "$bundle/bundle.json" ] || lacks "$1 is neither a bundle nor a run with one."
else
    say "a small run, trained and exported here"
    (cd "$checkout" && "$python" -m tools.checks.device_install --export "$scratch" >/dev/null)
    bundle=$scratch/run/bundle
fi

say "predict on this machine"
(cd "$checkout" && "$python" -m edgetl predict "$bundle" "$bundle"/golden/[0-9]* --csv -k 1) >"$scratch/here.csv"
for core in ${QEMU_CPU:-$cores}; do
    say "verify, aarch64 as $core"
    inside "$core" -m edgetl verify /work
    say "predict, aarch64 as $core"
    inside "$core" -c 'import glob, sys; from edgetl.cli.app import main
sys.argv = ["edgetl", "predict", "/work", *sorted(glob.glob("/work/golden/[0-9]*")), "--csv", "-k", "1"]; main()' >"$scratch/there.csv"
    "$python" "$checkout/tools/checks/arm64/compare.py" "$scratch/here.csv" "$scratch/there.csv"
done
say "bench, aarch64 as ${core}, a few runs"
inside "$core" /opt/bench.py /work
