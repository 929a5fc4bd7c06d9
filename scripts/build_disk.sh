#!/bin/bash
# Build the quick layer of the test guest: the root file system with the agent installed, as kernel, initrd and disk.
#
#   scripts/build_disk.sh ROOTFS.tar OUTDIR        (needs root; the Makefile runs it)
#
# The agent goes in by `make install-guest`, the way a user installs it.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

rootfs=$1 out=$2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tar -xf "$rootfs" -C "$work"
make --silent --no-print-directory install-guest DESTDIR="$work"

cp --no-preserve=mode "$work"/boot/vmlinuz-* "$out/vmlinuz"
cp "$work/boot/initrd-test.img" "$out/initrd.img"
rm -rf "$out"/disk.img* "$out/accel" "$work"/boot/*
# No journal: the disk is only ever used with snapshot=on. Under another name until it is whole.
truncate -s 1G "$out/disk.img.new"
mke2fs -q -F -t ext4 -m 0 -O ^has_journal -d "$work" "$out/disk.img.new"
chown "${SUDO_UID:-0}:${SUDO_GID:-0}" "$out"/{vmlinuz,initrd.img,disk.img.new}
mv "$out/disk.img.new" "$out/disk.img"
