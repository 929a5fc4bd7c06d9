"""The wire of QEMU's guest agent, served to clients that know no other: libvirt, Proxmox, scripts.

dispatch    one command → its answer
channel     the channels, where they differ from the agent's own
server      the channel opened, and opened again; commands in, answers out
"""
