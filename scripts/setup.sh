#!/bin/bash
# Install what a fresh Debian 12 or 13 lacks: Debian packages, and the virtual environment .venv.
#
#   scripts/setup.sh [PYTHON]        (PYTHON makes .venv; default python3)
#
# Says what it does; does nothing, at once, when nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-python3}
# gpg and mount are only recommended by mmdebstrap: it finds the archive's key by the one, and needs the other.
packages=(python3-venv qemu-system-x86 qemu-utils mmdebstrap gpg mount e2fsprogs socat ca-certificates openssh-client)
# The requirements that .venv was made for.
stamp=.venv/requirements.sha256

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing Debian packages: ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update --quiet=2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" </dev/null >/dev/null
fi

if ! sha256sum --check --status "$stamp" 2>/dev/null; then
    echo "setup: making .venv with the Python packages of pyproject.toml"
    "$python" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
    sha256sum pyproject.toml >"$stamp"
fi
