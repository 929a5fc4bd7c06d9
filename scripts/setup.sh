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

# libvirt, for a test that starts a daemon of its own (tests/guest/test_libvirt.py). No service is to run here because of
# us: libvirt-daemon-system, which has Debian 12's units, is left out, and units that come nevertheless (Debian 13 has
# them in other packages) are neither started, by policy-rc.d, nor enabled.
libvirt=(libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients)
if [ ! -x /usr/sbin/libvirtd ] || [ ! -x /usr/bin/virsh ]; then
    echo "setup: installing Debian packages: ${libvirt[*]}"
    policy=/usr/sbin/policy-rc.d
    [ -e $policy ] && policy= || printf '#!/bin/sh\nexit 101\n' | as_root install -m 0755 /dev/stdin $policy
    if as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${libvirt[@]}" </dev/null >/dev/null; then
        mapfile -t units < <(dpkg-query --show --showformat='${Package}\n' 'libvirt-daemon*' | xargs dpkg-query --listfiles 2>/dev/null |
            sed -n 's|.*/systemd/system/\([^/]*\.\(service\|socket\)\)$|\1|p')
        [ ${#units[@]} = 0 ] || as_root systemctl --quiet disable "${units[@]}" || true
    else
        echo "setup: no libvirt to be had; the test that needs it is skipped" >&2
    fi
    [ -z "$policy" ] || as_root rm $policy
fi

# QEMU's own guest agent, for tests that compare. Unpacked, not installed: its package would start a service here.
if [ ! -e build/qemu-ga ]; then
    echo "setup: unpacking qemu-guest-agent into build/qemu-ga"
    scratch=$(mktemp -d)
    if (cd "$scratch" && apt-get download --quiet=2 --option APT::Sandbox::User=root qemu-guest-agent) &&
        mkdir -p build && dpkg-deb --extract "$scratch"/*.deb "$scratch/root"; then
        mv "$scratch/root" build/qemu-ga
    else
        echo "setup: no qemu-guest-agent to be had; tests that compare with it are skipped" >&2
    fi
    rm -rf "$scratch"
fi
