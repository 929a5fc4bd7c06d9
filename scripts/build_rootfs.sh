#!/bin/bash
# Build the slow layer of the test guest: a Debian 12 root file system without the agent.
#
#   scripts/build_rootfs.sh OUT.tar        (needs root; the Makefile runs it, and keeps OUT.tar until this file changes)
#
# A plain Debian (kernel, systemd, udev, D-Bus, Python), and what makes it a good test guest:
#
#   initrd  only loads the disk's driver. Debian's own runs a second udev, which costs seconds without KVM.
#   ttyS0   is the log: kernel and journal, in order, for whoever wonders why a test failed.
#   shell   a root shell for the tests (tests/guest/vm.py) on the PCI serial port in slot 0x1e. What it prints is never
#           mixed with the log, and the ISA port ttyS1 stays free for the isa-serial channel.
#   qemu-ga is there for comparison (benchmarks/) and is not started.
#   logins  are sessions for logind (libpam-systemd).
#   sshd    is not started, either: a test starts it, to be reached without a network (tests/guest/test_forward.py).
#   displays without a screen, for clipboards: Xvfb, and sway with wl-clipboard; and python-xlib. 30 MB, since what
#           draws with a graphics card, and what draws backgrounds, is taken out again (200 MB).
set -euo pipefail

out=$1
packages=linux-image-cloud-amd64,systemd-sysv,udev,dbus,python3,procps,busybox-static,qemu-guest-agent,openssh-server,libpam-systemd
packages=$packages,xvfb,python3-xlib,sway,wl-clipboard

# No use in a guest that lives for a minute: 5 s of boot without KVM, or (timers) work in the middle of a test.
masked="e2scrub_reap.service e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
    fstrim.timer systemd-tmpfiles-clean.timer qemu-guest-agent.service getty@tty1.service serial-getty@ttyS0.service"
# Nor these, for kernel features that no test looks at; together a fifth of a boot's processor time.
masked="$masked modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service
    modprobe@loop.service systemd-modules-load.service systemd-pstore.service systemd-random-seed.service
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-sysusers.service dev-hugepages.mount
    dev-mqueue.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/init" <<'END'
#!/bin/busybox sh
while read -r module; do busybox insmod "$module"; done </modules
busybox mount -t devtmpfs dev /dev
busybox mount -t ext4 /dev/vda /root
busybox mount --move /dev /root/dev
exec busybox switch_root /root /sbin/init
END

cat >"$work/test-shell.service" <<'END'
[Unit]
Description=Root shell for the tests

[Service]
# Raw: no echo and no CRLF, so a test reads exactly what its command prints.
ExecStart=/bin/bash -c 'stty raw -echo; exec bash'
WorkingDirectory=/root
StandardInput=tty
StandardOutput=tty
# Not a terminal: a bash whose errors go to one is interactive, with prompt and line editing.
StandardError=journal
TTYPath=/dev/test-shell
# What a command leaves in the background outlives the shell.
KillMode=process
Restart=always
END

cat >"$work/90-test-shell.rules" <<'END'
SUBSYSTEM=="tty", KERNELS=="0000:00:1e.0", SYMLINK+="test-shell", TAG+="systemd", ENV{SYSTEMD_WANTS}+="test-shell.service"
END

cat >"$work/journald.conf" <<'END'
[Journal]
Storage=volatile
ForwardToConsole=yes
MaxLevelConsole=info
END

# Neither Xvfb nor sway ever loads these, as we start them (tests/integration/displays.py).
unused="libgl1-mesa-dri libllvm15 libz3-4 swaybg libgdk-pixbuf-2.0-0 libgdk-pixbuf2.0-common shared-mime-info libxml2 libicu72
    fonts-dejavu-core"

# Runs on the host: $1 is the root file system, $2 is $work; what follows are the units to mask.
cat >"$work/customize" <<'END'
set -eu
root=$1 work=$2 unused=$3
shift 3

# shellcheck disable=SC2086  # a list
chroot "$root" dpkg --purge --force-depends $unused >/dev/null 2>&1

echo virtagent-guest >"$root/etc/hostname"
echo "127.0.0.1 localhost virtagent-guest" >"$root/etc/hosts"
echo "/dev/vda / ext4 defaults 0 0" >"$root/etc/fstab"
chroot "$root" passwd --quiet --delete root
# Without an id every boot is systemd's "first boot", which goes through all presets.
chroot "$root" systemd-machine-id-setup
install -D -m 0644 "$work/journald.conf" "$root/etc/systemd/journald.conf.d/test.conf"
install -m 0644 "$work/test-shell.service" "$root/etc/systemd/system/"
install -m 0644 "$work/90-test-shell.rules" "$root/etc/udev/rules.d/"
chroot "$root" systemctl --quiet set-default multi-user.target
chroot "$root" systemctl --quiet mask "$@"
chroot "$root" systemctl --quiet disable ssh.service

initrd="$root/tmp/initrd"
mkdir -p "$initrd/bin" "$initrd/dev" "$initrd/root"
install -m 0755 "$work/init" "$initrd/init"
cp "$root/bin/busybox" "$initrd/bin/"
kernel=$(ls "$root/lib/modules")
chroot "$root" modprobe --set-version "$kernel" --show-depends -a virtio_pci virtio_blk |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/modules"
while read -r module; do
    cp "$root$module" "$initrd/"
    basename "$module" >>"$initrd/modules"
done <"$work/modules"
chroot "$root" sh -c 'cd /tmp/initrd && find . | cpio --quiet -o -H newc >/boot/initrd-test.img'
rm -r "$initrd"
END

# INITRD=No: the kernel's postinst shall not build an initramfs that nobody boots.
# shellcheck disable=SC2086  # $masked is a list
INITRD=No mmdebstrap --quiet --mode=root --variant=minbase --format=tar \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$packages" \
    --customize-hook="sh '$work/customize' \"\$1\" '$work' '$(echo $unused)' $(echo $masked)" \
    bookworm "$work/rootfs.tar" </dev/null

# Whoever called sudo owns the result. In two steps, so that a cut-off copy is never taken for the whole.
install -o "${SUDO_UID:-0}" -g "${SUDO_GID:-0}" -m 0644 "$work/rootfs.tar" "$out.new"
mv "$out.new" "$out"
