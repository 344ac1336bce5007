#!/usr/bin/env bash
# Extract ONNX Runtime's C++ headers from the Debian package: tools/repo/onnxruntime_headers.sh FOLDER
# For Debian releases without libonnxruntime-dev. The package is downloaded from apt's mirror, or
# $EDGETL_MIRROR, for the release $EDGETL_SUITE (default: trixie).
set -euo pipefail
target=${1:?"Missing argument: the folder to write the headers to."}
suite=${EDGETL_SUITE:-trixie}
# shellcheck disable=SC2016  # apt expands it
mirror=${EDGETL_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)}
[ -n "$mirror" ] || { echo "No Debian mirror found in apt's sources. Set EDGETL_MIRROR." >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
options=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State=$work" -o "Dir::State::status=/dev/null"
    -o "Dir::Cache=$work" -o APT::Sandbox::User=root -o Acquire::Languages=none)
apt-get "${options[@]}" update
(cd "$work" && apt-get "${options[@]}" download libonnxruntime-dev)
dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/package"
mkdir -p "$target"
cp -r "$work/package/usr/include/onnxruntime" "$target/"
echo "Wrote ONNX Runtime's headers to $target/onnxruntime."
