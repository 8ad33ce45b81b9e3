#!/bin/sh
# Installs what the tests need and this machine lacks. Each part may fail: the message says what will be missing.
#
#   scripts/prepare-tests.sh VENV      VENV is the folder of the Python environment for tests/requirements.txt
set -eu
cd "$(dirname "$0")/.."
venv=$1

say() {
    printf 'prepare-tests: %s\n' "$1" >&2
}

# Debian's packages that tests call, as `command:package`.
debian='curl:curl python3:python3-venv nginx:nginx-light haproxy:haproxy promtool:prometheus amtool:prometheus-alertmanager npm:npm systemd-analyze:systemd'

missing=
for need in $debian; do
    # Programs for the administrator are in no user's path.
    PATH=$PATH:/usr/sbin command -v "${need%%:*}" >/dev/null || missing="$missing ${need##*:}"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # Debian starts a server when it installs one, unless this file says that it must not; the tests start their own.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then
            trap 'rm -f $policy' EXIT
            printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
        fi
        # shellcheck disable=SC2086 # a list of words
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing; } >/dev/null ||
            say "apt-get could not install$missing"
    else
        say "please install:$missing"
    fi
fi

if ! command -v cargo-nextest >/dev/null; then
    say 'building cargo-nextest, once; this takes some minutes'
    cargo install --quiet --locked cargo-nextest || say 'no cargo-nextest; the tests will run under cargo test'
fi

# The Python clients that tests run against the server. The environment is remade only when the list changes.
requirements=tests/requirements.txt

install_requirements() {
    python3 -m venv --clear "$venv" || return
    # uv is several times faster; where it cannot be had, pip does the same.
    if "$venv/bin/python" -m pip install --quiet uv; then
        "$venv/bin/python" -m uv pip install --quiet --no-deps --python "$venv/bin/python" -r "$requirements" && return
    fi
    "$venv/bin/python" -m pip install --quiet --no-deps -r "$requirements"
}

if [ -f "$requirements" ] && ! cmp -s "$requirements" "$venv/requirements.txt"; then
    if install_requirements; then
        cp "$requirements" "$venv/requirements.txt"
    else
        say "the packages of $requirements could not be installed"
    fi
fi

# Grafana's types and the compiler that reads them, for the check of the dashboards.
packages=tests/packages.txt

if [ -f "$packages" ] && ! cmp -s "$packages" "$venv/packages.txt"; then
    # shellcheck disable=SC2046 # a list of words
    if npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix "$venv/npm" $(grep -v '^#' "$packages"); then
        cp "$packages" "$venv/packages.txt"
    else
        say "the packages of $packages could not be installed"
    fi
fi
