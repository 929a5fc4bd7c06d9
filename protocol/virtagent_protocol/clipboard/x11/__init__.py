"""The clipboard of an X server, the selection CLIPBOARD, by python-xlib.

    atoms      names and numbers
    incoming   one conversion that we have asked for (ICCCM 2.4), with INCR (2.7.2)
    outgoing   what others ask of us while we are the owner (ICCCM 2.2), with INCR
    screen     one connection: events to those two
    thread     the connection in a thread of its own
    clipboard  all that as a `Backend`

python-xlib waits for the server with its own blocking I/O, and a server may be stopped; so it has a thread,
in which nothing but a server can hold it up. Conversions are driven by events there: while we wait for one
program's contents, others get ours.
"""

from .clipboard import open_x11 as open_x11
