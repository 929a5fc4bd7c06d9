"""Connections that programs in the guest make, passed on to the host."""
