#!/bin/sh
# Builds the container image where no base image can be pulled and no Docker runs: Debian 12, as root, with buildah.
#
#   scripts/build-image.sh [TAG [FEATURES]]         FEATURES: such as --no-default-features
#
# The base image is made by debootstrap from the packages that this machine's apt uses, once. The build stage gets
# this machine's Rust toolchain, and both build stages its certificates, package sources and crates, as mounts:
# nothing of them gets into the image.
set -eu
cd "$(dirname "$0")/.."
tag=${1:-tidegate}
features=${2:-}
base=localhost/tidegate-base:bookworm
build=localhost/tidegate-build:bookworm

fail() {
    printf 'build-image: %s\n' "$1" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail 'needs root: debootstrap makes a root file system'
for tool in buildah debootstrap cargo; do
    command -v "$tool" >/dev/null || fail "$tool is missing (Debian: apt-get install buildah debootstrap)"
done

# In a plain folder and with a plain chroot, so that no kernel feature of containers is needed.
buildah() {
    command buildah --storage-driver vfs "$@"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

# The certificates as a copy, since installing ca-certificates writes there.
cp -rL /etc/ssl/certs "$scratch/certs"
host_mounts="--volume $scratch/certs:/etc/ssl/certs"
for path in /usr/local/share/ca-certificates /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d /etc/pip.conf; do
    [ ! -e "$path" ] || host_mounts="$host_mounts --volume $path:$path:ro"
done

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    root=$scratch/root
    # shellcheck disable=SC2016 # apt-get fills it in
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
    debootstrap --variant=minbase bookworm "$root" "$mirror" >&2
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$root" / >/dev/null
    buildah commit --quiet --rm "$container" "$base" >/dev/null
fi

if ! buildah inspect --type image "$build" >/dev/null 2>&1; then
    container=$(buildah from "$base")
    # shellcheck disable=SC2086 # a list of options
    buildah run --isolation chroot $host_mounts "$container" -- \
        sh -c 'apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev >/dev/null'
    buildah config --env PATH=/opt/rust/bin:/usr/bin:/bin --env CARGO_HOME=/opt/cargo "$container"
    buildah commit --quiet --rm "$container" "$build" >/dev/null
fi

# In Docker's format, because the OCI one has no health check.
# shellcheck disable=SC2086 # a list of options
buildah bud --isolation chroot --format docker --layers=false $host_mounts \
    --volume "$(rustc --print sysroot):/opt/rust:ro" \
    --volume "${CARGO_HOME:-$HOME/.cargo}/registry:/opt/cargo/registry" \
    --build-arg "RUST_IMAGE=$build" --build-arg "BASE_IMAGE=$base" --build-arg "FEATURES=$features" \
    --tag "$tag" .
printf 'built %s; copy it out with: buildah --storage-driver vfs push %s docker-archive:FILE.tar\n' "$tag" "$tag"
