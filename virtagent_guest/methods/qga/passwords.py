"""guest-set-user-password, by chpasswd(8): it knows about PAM, shadow files and their locks."""

from __future__ import annotations

from . import base64text
from .command import CommandRegistry, QgaError
from .program import run_program

registry = CommandRegistry()

PROGRAM = "chpasswd"
#: Bytes of name and password together. chpasswd reads lines of 8 KiB, and a pipe holds more than this.
LINE_MAX = 4096


@registry.command("guest-set-user-password")
async def set_user_password(username: str, password: str, crypted: bool) -> None:
    """Set a user's password; it is base64 of the plain text, or of what crypt(3) made of it if crypted."""
    secret = base64text.decode(password)
    # A line feed would begin another line of chpasswd's input, another user's password. A NUL would end it.
    if b"\n" in secret or b"\0" in secret:
        raise QgaError("forbidden characters in raw password")
    if "\n" in username or ":" in username:
        raise QgaError("forbidden characters in username")
    line = username.encode() + b":" + secret + b"\n"
    if len(line) > LINE_MAX:
        raise QgaError(f"name and password are longer than {LINE_MAX} bytes")
    await run_program([PROGRAM, *(["-e"] if crypted else [])], "set user password", line)
