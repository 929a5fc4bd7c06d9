#!/bin/bash
# Install what only tests and benchmarks need: other people's software to compare with, or to be a client of ours.
#
# Says what it does; does nothing, at once, when nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

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

# Displays without a screen, and programs that copy and paste on them, for tests/integration/test_clipboard_*.py.
displays=(xvfb xclip sway wl-clipboard)
if ! type Xvfb xclip sway wl-copy >/dev/null 2>&1; then
    echo "setup: installing Debian packages: ${displays[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${displays[@]}" </dev/null >/dev/null
fi

# A bus of their own for tests/integration/test_event_bus.py. The package holds the program and no service.
if ! type dbus-daemon >/dev/null 2>&1; then
    echo "setup: installing Debian packages: dbus-daemon"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends dbus-daemon </dev/null >/dev/null
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
