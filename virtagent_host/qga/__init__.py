"""QEMU's guest agent, seen from the host, both ways round.

commands       guest-* commands to the guest's agent, whichever it is; for the bridge and the socket
socket         a unix socket that speaks qemu-ga's wire, for scripts that expect one
conversation   qemu-ga itself as a peer: one command at a time, in step again after a time-out
methods        the methods of virtagent's agent, done with qemu-ga's commands
pipes          streams with both ends here, for the methods that have one
processes      programs: va.exec by guest-exec
transfers      single files: va.read_tree and va.write_tree by guest-file-*
link           all of that with the face of a virtagent link
"""
