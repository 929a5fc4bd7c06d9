"""Connections between programs on the host and programs in the guest, over streams of the link."""
