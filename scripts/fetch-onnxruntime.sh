#!/bin/sh
# Puts ONNX Runtime's library, pinned and checksummed, into third_party/onnxruntime (or the folder given).
#
#   scripts/fetch-onnxruntime.sh [FOLDER]
#
# The library comes out of the onnxruntime wheel, which pip fetches and checks against the pinned hash; what is
# unpacked is checked once more. Where the right library is in place already, nothing happens. Python only carries
# it: the library is plain C and needs no Python to run. Its licence and third-party notices come along.
set -eu

version=1.32.0
dest=${1:-$(cd "$(dirname "$0")/.." && pwd)/third_party/onnxruntime}

fail() {
    printf 'fetch-onnxruntime: %s; or name an ONNX Runtime 1.24 or newer in ORT_DYLIB_PATH\n' "$1" >&2
    exit 1
}

# The wheel's platform and hash, the library's hash, its name in the wheel and the name it gets here.
inside=libonnxruntime.so.$version name=libonnxruntime.so
case "$(uname -s)-$(uname -m)" in
Linux-x86_64)
    platform=manylinux_2_28_x86_64
    wheel_sha256=5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d
    library_sha256=6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f
    ;;
Linux-aarch64)
    platform=manylinux_2_28_aarch64
    wheel_sha256=2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c
    library_sha256=49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a
    ;;
Darwin-arm64)
    platform=macosx_14_0_arm64
    wheel_sha256=366b9e53d07812cc5c92822cecf7563b76a8a0f32ba3bb8dd232a206ac3bcb6c
    library_sha256=fa585fabbea65b823b9a8f7e27d46aee3989d1be7e36b528203d3a1fd613aae7
    inside=libonnxruntime.$version.dylib name=libonnxruntime.dylib
    ;;
*)
    fail "no library is pinned for $(uname -s) on $(uname -m)"
    ;;
esac

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

in_place() {
    [ -f "$dest/$name" ] && [ "$(sha256 "$dest/$name")" = "$library_sha256" ]
}

if in_place; then exit 0; fi

python=${PYTHON:-python3}
"$python" -m pip --version >/dev/null 2>&1 ||
    fail "$python with pip is needed to fetch ONNX Runtime $version; install them (Debian: apt-get install python3-pip)"

mkdir -p "$dest"
# Within the destination, so that the library appears there whole, in one rename.
work=$(mktemp -d "$dest/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

printf 'onnxruntime==%s --hash=sha256:%s\n' "$version" "$wheel_sha256" >"$work/requirements"
# The wheel's Python version is part of its name and of the pinned hash; it need not be this Python's.
PIP_REQUIRE_VIRTUALENV=0 "$python" -m pip download --quiet --disable-pip-version-check \
    --no-deps --require-hashes --only-binary :all: \
    --implementation cp --python-version 3.11 --abi cp311 --platform "$platform" \
    --dest "$work" --requirement "$work/requirements" >"$work/pip.log" 2>&1 || {
    reason=$(grep '^ERROR' "$work/pip.log" | tail -n 1)
    fail "pip could not fetch ONNX Runtime $version (${reason:-no reason given}); check the network and pip's settings, then call again"
}

"$python" - "$work" "$inside" "$name" <<'PYTHON' || fail "the wheel of ONNX Runtime $version could not be unpacked into $dest; is there room?"
import glob, os, shutil, sys, zipfile

work, inside, name = sys.argv[1:]
wanted = {f"capi/{inside}": name, "LICENSE": "LICENSE", "ThirdPartyNotices.txt": "ThirdPartyNotices.txt"}
with zipfile.ZipFile(glob.glob(os.path.join(work, "*.whl"))[0]) as wheel:
    for source, target in wanted.items():
        with wheel.open(f"onnxruntime/{source}") as packed, open(os.path.join(work, target), "wb") as out:
            shutil.copyfileobj(packed, out)
PYTHON

chmod 644 "$work/LICENSE" "$work/ThirdPartyNotices.txt"
chmod 755 "$work/$name"
mv "$work/LICENSE" "$work/ThirdPartyNotices.txt" "$dest/"
mv "$work/$name" "$dest/$name" # last: whoever finds the library finds its licence beside it
in_place || fail "$dest/$name does not have the pinned checksum; remove it and call again"
printf 'ONNX Runtime %s is in %s\n' "$version" "$dest"
