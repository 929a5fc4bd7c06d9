"""What the commands share: the VM's name, the options every one of them spells the same, the connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from virtagent_protocol.errors import NotThere, VirtagentError

from ..frontend.output import put_error
from ..runtime import BadName, RuntimeDir, check_name

if TYPE_CHECKING:
    from ..frontend.client import VmClient

if TYPE_CHECKING:
    _StrType = click.ParamType[str]
else:
    _StrType = click.ParamType  # Generic only since click 8.2.

EXIT_USAGE = 2

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass
class Invocation:
    """One run of `va-host`: what its global options said, and what it ends with.

    Attributes:
        runtime_dir: as given.
        verbose: how often ``-v`` was given.
        json: whether the command was told ``--json``: its errors are JSON then, too.
        status: the exit status of a command that ends without an exception.
        session: of the guest's user sessions, the one that is asked in place of the guest's agent.
    """

    runtime_dir: str | None = None
    verbose: int = 0
    json: bool = False
    status: int = 0
    session: str | None = None

    @property
    def runtime(self) -> RuntimeDir:
        """The runtime directory. Raises NotThere if none can be chosen."""
        return RuntimeDir.find(self.runtime_dir)

    def choose(self, name: str | None) -> str:
        """Return *name*, or the only attached VM's.

        Raises:
            NotThere: none is attached.
            click.UsageError: several are.
        """
        if name is not None:
            return name
        attached = self.runtime.attached()
        if len(attached) == 1:
            return attached[0]
        if attached:
            raise click.UsageError(f"several VMs are attached, say which: {', '.join(attached)}")

        from ..frontend.client import no_such_vm

        raise NotThere(no_such_vm(self.runtime))

    def connect(self, name: str | None) -> VmClient:
        """Connect to the bridge of *name*, or of the only attached VM."""
        from ..frontend.client import VmClient

        client = VmClient.connect(self.runtime, self.choose(name))
        client.session = self.session
        return client


class VmName(_StrType):
    """A VM's name; completes to those that are attached."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_name(value)
        except BadName as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in attached_names(ctx) if name.startswith(incomplete)]


def attached_names(ctx: click.Context) -> list[str]:
    """Return the names to complete to; none rather than an error."""
    try:
        return RuntimeDir.find(ctx.find_root().params.get("runtime_dir")).attached()
    except VirtagentError:
        return []


def vm_argument(*then: str) -> Callable[[Decorated], Decorated]:
    """Return the decorator for the argument NAME, which may be left out.

    click has no optional argument before a required one, but one of any number of values before it:
    so NAME is that, and more than one value is a usage error.

    Args:
        then: the choices of the argument that follows, if it has any. The shell cannot know which of the
            two a first word is, so both are offered.
    """

    def at_most_one(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> str | None:
        if len(names) > 1:
            raise click.UsageError(f"unexpected argument: {names[1]}", ctx)
        return names[0] if names else None

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        return [word for word in [*attached_names(ctx), *then] if word.startswith(incomplete)]

    return click.argument(
        "name",
        nargs=-1,
        type=VmName(),
        metavar="[NAME]",
        callback=at_most_one,
        shell_complete=complete,
    )


def json_option(what: str) -> Callable[[Decorated], Decorated]:
    """Return the decorator for ``--json``; it sets `Invocation.json`."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Invocation).json = True

    return click.option(
        "--json", is_flag=True, expose_value=False, is_eager=True, callback=remember, help=f"Print {what}."
    )


def session_option() -> Callable[[Decorated], Decorated]:
    """Return the decorator for ``--session``; it sets `Invocation.session`, and `VmClient` does the rest."""

    def remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        ctx.ensure_object(Invocation).session = value

    return click.option(
        "--session",
        metavar="ID",
        expose_value=False,
        callback=remember,
        help="Ask the agent of a user's session (va-host sessions): its id, or the user's uid.",
    )


def timeout_option(default: float | None, what: str) -> Callable[[Decorated], Decorated]:
    """Return the decorator for ``--timeout SECONDS``."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        default=default,
        show_default=default is not None,
        help=what,
    )


@contextmanager
def configuration(invocation: Invocation) -> Iterator[None]:
    """A policy that makes no sense is a mistake in what is configured, which no restart mends: status 2."""
    from ..services.file import PolicyError

    try:
        yield
    except PolicyError as error:
        put_error(error, as_json=invocation.json)
        invocation.status = EXIT_USAGE


def examples(*lines: str) -> str:
    """Return the end of a help text that shows these command lines."""
    shown = "\n".join(f"  {line}" for line in lines)
    return f"\b\n{'Examples' if len(lines) > 1 else 'Example'}:\n{shown}\n\n"
