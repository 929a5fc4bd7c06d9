"""The clipboard of a graphical session, X11's or Wayland's, for both ends: read, set, watched, kept alike.

Nothing here is imported by the system agent, nor by commands of the host that have nothing to do with it.

    mime      the names of types: which are let through, under which names they go
    contents  what a clipboard holds, in anonymous memory; its digest
    bundle    contents on a stream
    backend   what every clipboard can do; which one there is
    x11/      by python-xlib, in a thread
    wayland   by wl-copy and wl-paste
    carry     bundles, notices and answers on a trio stream
    sync      two clipboards kept alike, without an echo
"""
