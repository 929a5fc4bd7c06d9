"""QEMU: its monitor, its errors, and the virtagent devices in it."""
