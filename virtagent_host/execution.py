"""`va_exec`, `va_jobs` and what belongs to them: their entries for the table of `commands`.

What takes longer than an answer is the business of `streams.jobs`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from virtagent_protocol.errors import CallTimeout, RemoteProtocolError
from virtagent_protocol.values import Struct, Value, as_struct, member

from .command import Argument, Arguments, Client, Command, InvalidArguments, VirtualMachine

if TYPE_CHECKING:
    from .streams.jobs import Fds

#: Seconds for a process to be started; and to end, if its output is waited for.
TIMEOUT = 60.0
#: Seconds for what concerns a process that runs.
CALL_TIMEOUT = 15.0
#: Seconds beyond a process's own deadline until we hear of its end.
_AFTER_DEADLINE = 15.0
ENCODINGS = FORMATS = ("utf8", "base64")

#: Arguments that go to the guest as they are, by their names there.
_PLAIN = ("user", "shell", "merge", "deadline", "limits")
_FDS = ("stdin-fd", "stdout-fd", "stderr-fd")


async def execute(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_exec`."""
    from .streams import jobs

    request = _request(arguments)
    handed = [name for name in _FDS if arguments[name] is not None]
    if arguments["detach"]:
        for name in [*handed, *(name for name in ("pty", "input") if arguments[name] is not None)]:
            raise InvalidArguments(f"Parameter '{name}' does not go with 'detach'")
        with _within(arguments["timeout"]):
            answer = as_struct(await vm.call("va.exec", request), "the answer to va.exec")
        return {name: member(answer, name, int) for name in ("id", "pid")}
    if handed:
        if arguments["input"] is not None:
            raise InvalidArguments("Parameter 'input' does not go with file descriptors: there is 'stdin-fd'")
        if "stderr-fd" in handed and (arguments["merge"] or arguments["pty"]):
            raise InvalidArguments("Parameter 'stderr-fd' does not go with 'merge' or 'pty'")
        fds = _take(arguments, client)
        try:
            with _within(arguments["timeout"]):
                return await jobs.run(vm, client, request, fds, arguments.get("session"))
        except BaseException:
            fds.close()
            raise
    deadline = arguments["deadline"]
    with _within(arguments["timeout"] if deadline is None else deadline + _AFTER_DEADLINE):
        outcome, outputs = await jobs.capture(vm, request, _input(arguments))
    form = arguments["format"]
    shown = {
        name: (base64.b64encode(data).decode("ascii") if form == "base64" else data.decode(errors="replace"))
        for name, (data, _) in outputs.items()
    }
    return {**outcome, **shown, "format": form, "truncated": any(cut for _, cut in outputs.values())}


async def exec_wait(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_exec_wait`."""
    from .streams import jobs

    return await jobs.wait(client, arguments["id"], arguments.get("session"))


async def list_jobs(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_jobs`."""
    answer = await vm.call("va.jobs")
    if not isinstance(answer, list):
        raise RemoteProtocolError("the answer to va.jobs must be an array")
    return {"jobs": [_job(as_struct(job, "a job")) for job in answer]}


async def attach(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_job_attach`."""
    from .streams import jobs

    fds = _take(arguments, client)
    try:
        offsets = (arguments["offset"], arguments["stderr-offset"])
        return await jobs.attach(vm, client, arguments["id"], offsets, fds, arguments.get("session"))
    except BaseException:
        fds.close()
        raise


async def signal_job(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_job_signal`."""
    await vm.call("va.job_signal", arguments["id"], arguments["signal"])
    return {}


async def resize(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_job_resize`."""
    await vm.call("va.job_resize", arguments["id"], arguments["rows"], arguments["cols"])
    return {}


async def forget(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_job_forget`."""
    await vm.call("va.job_forget", arguments["id"])
    return {}


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    import trio

    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise CallTimeout(f"va_exec was not done within {seconds:.3g} s")


def _take(arguments: Arguments, client: Client) -> Fds:
    from .streams.jobs import Fds

    fds = Fds()
    try:
        for name in _FDS:
            if arguments.get(name) is not None:
                setattr(fds, name.removesuffix("-fd"), client.take_fd(arguments[name]))
    except BaseException:
        fds.close()
        raise
    return fds


def _request(arguments: Arguments) -> Struct:
    """Return the members of va.exec's struct that are no streams."""
    request: Struct = {name: arguments[name] for name in _PLAIN if arguments[name] is not None}
    request["argv"] = [_text(word, arguments, "argv") for word in arguments["argv"]]
    env = arguments["env"] or {}
    request["env"] = {name: _text(value, arguments, "env") for name, value in env.items()}
    request["clear_env"] = arguments["clear-env"]
    if arguments["cwd"] is not None:
        request["cwd"] = _text(arguments["cwd"], arguments, "cwd")
    if arguments["pty"] is not None:
        request["pty"] = dict(arguments["pty"])
    for name in ("pty", "limits"):
        for value in (arguments[name] or {}).values():
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                raise InvalidArguments(f"Parameter '{name}' must hold integers and strings only")
    return request


def _text(text: object, arguments: Arguments, name: str) -> Value:
    """Return text of a process as the guest takes it: base64 for whatever XML does not carry as a string."""
    from virtagent_protocol.xmlrpc import text_or_bytes

    if not isinstance(text, str):
        raise InvalidArguments(f"Parameter '{name}' must hold strings only")
    return text_or_bytes(_decoded(text, arguments["encoding"], name))


def _input(arguments: Arguments) -> bytes:
    given = arguments["input"]
    return b"" if given is None else _decoded(given, arguments["format"], "input")


def _decoded(text: str, encoding: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if encoding == "base64" else text.encode()
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidArguments(f"Parameter '{name}' is not {encoding}") from None


def _job(job: Struct) -> dict[str, Any]:
    from virtagent_protocol.outcome import read_outcome

    state = member(job, "state", str)
    argv = [
        word.decode(errors="backslashreplace") if isinstance(word, bytes) else str(word)
        for word in member(job, "argv", list)
    ]
    output: dict[str, Any] = {}
    for name, span in member(job, "output", dict, {}).items():
        span = as_struct(span, "an output")
        output[name] = {edge: member(span, edge, int) for edge in ("begin", "end")}
    return {
        "id": member(job, "id", int),
        "pid": member(job, "pid", int),
        "argv": argv,
        "detached": member(job, "detached", bool),
        "state": state,
        "started": member(job, "started", float),
        **({"ended": member(job, "ended", float), **read_outcome(job)} if state == "ended" else {}),
        **({"output": output} if output else {}),
    }


def _timeout(default: float | None = CALL_TIMEOUT, help: str = "seconds to wait for the answer") -> Argument:
    return Argument("timeout", "number", help, optional=True, default=default, minimum=0)


def _optional(name: str, type: str, help: str) -> Argument:
    return Argument(name, type, help, optional=True)


def _flag(name: str, help: str) -> Argument:
    return Argument(name, "boolean", help, optional=True, default=False)


_ID = Argument("id", "integer", "of the job, as va_exec and va_jobs tell it")
_HANDED = "name under which getfd handed it over"
_OUTCOME = "code: its exit status, or signal, core: what killed it; deadline: true if that was why"

COMMANDS = (
    Command(
        "va_exec",
        "Run a program in the guest: on file descriptors, detached, or wait and return what it writes.",
        "{id, pid} with file descriptors or detach; else {code or signal, stdout, stderr, truncated}",
        'va_exec \'["ls", "-l", "/"]\'',
        execute,
        (
            Argument("argv", "array", "the program, by path or by name, and its arguments"),
            _flag("shell", "whether argv is one string, for sh -c"),
            _optional("env", "object", "environment variables that are set"),
            _flag("clear-env", "whether no others are"),
            _optional("cwd", "string", "working directory; else the user's home"),
            _optional("user", "string", "as whom; else as whom the agent runs"),
            _optional("stdin-fd", "string", f"what it reads: {_HANDED}; else nothing"),
            _optional("stdout-fd", "string", f"where it writes: {_HANDED}; else nowhere"),
            _optional("stderr-fd", "string", f"where its errors go: {_HANDED}; else nowhere"),
            _optional("pty", "object", "the terminal that it gets: rows, cols, and term, for $TERM"),
            _flag("merge", "whether stderr goes where stdout goes"),
            _optional("deadline", "number", "seconds after which it gets SIGTERM, and 2 later SIGKILL"),
            _optional("limits", "object", "cpu (seconds), memory (bytes), files, processes"),
            _flag("detach", "whether it runs on by itself, its output being kept (va_job_attach)"),
            _optional("input", "string", "what it reads, in the format, if there are no descriptors"),
            Argument(
                "format",
                "string",
                "of input, stdout and stderr; what is not UTF-8 comes as U+FFFD unless it is base64",
                optional=True,
                default="utf8",
                choices=FORMATS,
            ),
            Argument(
                "encoding",
                "string",
                "of argv, cwd and the values of env",
                optional=True,
                default="utf8",
                choices=ENCODINGS,
            ),
            _timeout(TIMEOUT, "seconds for it to start; to end, if its output is returned (then SIGHUP)"),
        ),
    ),
    Command(
        "va_exec_wait",
        "Wait until a job that this client is attached to has ended and its output has been written.",
        f"{{{_OUTCOME}}}",
        "va_exec_wait 1",
        exec_wait,
        (_ID, _timeout(None, "seconds to wait; else as long as it takes")),
    ),
    Command(
        "va_jobs",
        "List the jobs of the guest that run, and the detached ones that have ended.",
        "{jobs: [{id, pid, argv, detached, state, started, ended, code or signal, output: offsets}…]}",
        "va_jobs",
        list_jobs,
        (_timeout(),),
    ),
    Command(
        "va_job_attach",
        "Write the output of a detached job to file descriptors, from an offset on, until it ends.",
        "{offset, stderr-offset: from which byte on it really is}; VA_JOB_ENDED tells the end",
        "va_job_attach 1 0 va_out",
        attach,
        (
            _ID,
            Argument("offset", "integer", "first byte of stdout", optional=True, default=0, minimum=0),
            _optional("stdout-fd", "string", f"where stdout goes: {_HANDED}"),
            _optional("stderr-fd", "string", f"where stderr goes: {_HANDED}"),
            Argument("stderr-offset", "integer", "first byte of stderr", optional=True, default=0, minimum=0),
            _timeout(),
        ),
    ),
    Command(
        "va_job_signal",
        "Send a signal to the processes of a job.",
        "{}",
        "va_job_signal 1 TERM",
        signal_job,
        (
            _ID,
            Argument("signal", "string", "such as TERM or SIGTERM", optional=True, default="TERM"),
            _timeout(),
        ),
    ),
    Command(
        "va_job_resize",
        "Tell the terminal of a job its size.",
        "{}",
        "va_job_resize 1 24 80",
        resize,
        (
            _ID,
            Argument("rows", "integer", "lines", minimum=1),
            Argument("cols", "integer", "characters of a line", minimum=1),
            _timeout(),
        ),
    ),
    Command(
        "va_job_forget",
        "Drop a detached job that has ended, with its output.",
        "{}",
        "va_job_forget 1",
        forget,
        (_ID, _timeout()),
    ),
)
