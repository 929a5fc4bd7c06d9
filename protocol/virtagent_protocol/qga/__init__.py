"""The wire of QEMU's guest agent (QGA), which qemu-ga speaks. Sans-IO, for both ends.

::

    lexer → parser → stream      bytes → JSON values and errors, as QEMU reads them
    messages                     values ↔ commands and answers
"""
