"""The bridge: a QMP server in front of QEMU, for any number of clients."""
