"""What a guest asks for: va.call_service, taken apart and checked (SPEC.md section 11).

All of it is the guest's word, the caller included: the agent there has it from its kernel, and the host has
it from the agent. So nothing here is more than text and numbers of a bounded size.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass

from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.values import Struct, Value, as_struct, member

#: Arguments of a call, and bytes of all of them as text: each is held against the patterns of rules.
ARGUMENTS_MAX = 256
ARGUMENT_BYTES_MAX = 32 * 1024
#: Ids of users and groups have 32 bits, process ids 22.
_ID_MAX = 2**32 - 1

SERVICE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
#: Names of users, those of domains among them. What is no such thing is left out: it would stand in a
#: service's environment.
_USER_NAME = re.compile(r"[0-9A-Za-z_.][0-9A-Za-z_.@\\+$-]{0,127}")


@dataclass(frozen=True)
class Caller:
    """A process of the guest, as the agent there tells of it.

    Attributes:
        pid: its number, in the guest.
        uid, gid: of its user and group.
        user: the user's name there; "" if it has none.
    """

    pid: int
    uid: int
    gid: int
    user: str

    def __str__(self) -> str:
        name = f"{self.user} (uid {self.uid})" if self.user else f"uid {self.uid}"
        return f"{name}, pid {self.pid}"


@dataclass(frozen=True)
class ServiceCall:
    """One call.

    Attributes:
        service: the name, which need not be one that there is.
        arguments: as they came.
        texts: as rules see them: text as it is, all else as JSON.
        caller: who calls.
        io: id of the stream for input and output.
        status: id of the stream for how it ended.
    """

    service: str
    arguments: tuple[Value, ...]
    texts: tuple[str, ...]
    caller: Caller
    io: int
    status: int

    def words(self) -> tuple[str, ...]:
        """Return the arguments as those of a program; bytes that are no text are in it as `os.fsdecode` has
        them.

        Raises:
            Fault: INVALID_PARAMS: one can be none.
        """
        for number, (argument, text) in enumerate(zip(self.arguments, self.texts, strict=True), 1):
            if not isinstance(argument, (str, bytes)):
                raise Fault(FaultCode.INVALID_PARAMS, f"argument {number} must be a string")
            if "\0" in text:
                raise Fault(FaultCode.INVALID_PARAMS, f"argument {number} has a NUL in it")
        return self.texts


def parse_call(value: Struct) -> ServiceCall:
    """Return the call that a received struct means.

    Raises:
        Fault: INVALID_PARAMS: it means none; the message names the member. TOO_LARGE: see there.
    """
    try:
        arguments = member(value, "arguments", list, [])
        caller = _caller(as_struct(value.get("caller"), "member 'caller'"))
        call = ServiceCall(
            service=member(value, "service", str),
            arguments=tuple(arguments),
            texts=tuple(map(_text, arguments)),
            caller=caller,
            io=member(value, "io", int),
            status=member(value, "status", int),
        )
    except RemoteProtocolError as error:
        raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None
    if len(arguments) > ARGUMENTS_MAX:
        raise Fault(FaultCode.INVALID_PARAMS, f"there are more than {ARGUMENTS_MAX} arguments")
    if sum(map(len, map(os.fsencode, call.texts))) > ARGUMENT_BYTES_MAX:
        raise Fault(FaultCode.TOO_LARGE, f"the arguments have more than {ARGUMENT_BYTES_MAX} bytes")
    if not SERVICE_NAME.fullmatch(call.service):
        raise Fault(
            FaultCode.INVALID_PARAMS,
            "the name of a service is up to 64 letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return call


def _text(argument: Value) -> str:
    if isinstance(argument, (str, bytes)):
        return os.fsdecode(argument)
    return json.dumps(argument, default=repr, sort_keys=True)


def _caller(value: Struct) -> Caller:
    pid, uid, gid = (member(value, name, int) for name in ("pid", "uid", "gid"))
    if not all(0 <= number <= _ID_MAX for number in (pid, uid, gid)):
        raise RemoteProtocolError("pid, uid and gid of a caller are numbers from 0 to 4294967295")
    user = member(value, "user", str, "")
    # An agent gives a user without a name its number.
    is_name = _USER_NAME.fullmatch(user) and not user.isdecimal()
    return Caller(pid, uid, gid, user if is_name else "")
