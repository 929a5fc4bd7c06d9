"""va.call_service: what a guest's programs ask of this host (SPEC.md section 11).

The rules:

1. The policy is asked before anything is looked for. Who is refused learns no more than that: not whether
   there is such a service. The log here says which rule it was, with the call's tag, which the guest logs
   too.
2. Limits come next, then the service. What is wrong with that is for this host's log, not for the guest.
3. The call is answered when the service has begun. How it ends is told on a stream of its own, so that one
   which takes hours holds none of the places for calls.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from virtagent_protocol import logs
from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.outcome import send_status
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.stream import CANCELLED, LinkStream
from virtagent_protocol.values import Struct, Value

from .allowance import Allowance
from .catalog import Function, Unusable, find_service
from .function import run_function
from .guard import ServicesGuard
from .program import Running
from .request import ServiceCall, parse_call
from .rules import Settings

log = logging.getLogger("virtagent.services")

#: Seconds for the guest to take the few bytes that say how a service ended.
STATUS_TIME = 10.0


class ServiceCalls:
    """The services of one guest.

    Args:
        vm: the VM's name.
        guard: its policy; None: nothing is offered at all.
    """

    def __init__(self, vm: str, guard: ServicesGuard | None) -> None:
        self._vm = vm
        self._guard = guard
        self._allowance = Allowance()

    def methods(self) -> Registry:
        """Return what the guest may call."""
        registry = Registry()
        registry.method("va.call_service")(self._call)
        return registry

    async def _call(self, call: Call, request: dict[str, Value]) -> dict[str, Value]:
        """Call a service of the host: service, arguments, caller, io, status.

        caller is a struct of pid, uid, gid and user. io and status are the ids of new streams: for what it
        reads and writes, and for how it ended. The result has kind: "program" or "function".
        """
        wanted = parse_call(request)
        settings = await self._check(call, wanted)
        assert self._guard is not None
        try:
            self._allowance.take(wanted.caller.uid, self._guard.policy.limits, trio.current_time())
        except Fault as fault:
            if logs.room():
                log.info("%s: refused: %s", self._what(call, wanted), fault)
            raise
        begun = False
        try:
            kind = await self._begin(call, wanted, settings)
            begun = True
        finally:
            if not begun:
                self._allowance.give_back(wanted.caller.uid)
        return {"kind": kind}

    async def _check(self, call: Call, wanted: ServiceCall) -> Settings:
        """Return how it may be run. Raises Fault if it may not."""
        why = "va-host was started without services"
        if self._guard is not None:
            # In a thread: long arguments and many patterns take their time.
            decision = await trio.to_thread.run_sync(
                self._guard.policy.decide, self._vm, wanted.caller, wanted.service, wanted.texts
            )
            if decision.rule is not None and decision.rule.allow:
                return decision.rule.settings
            why = str(decision)
        log.warning("%s: forbidden: %s", self._what(call, wanted), why)
        raise Fault(
            FaultCode.FORBIDDEN,
            f"this host does not let {wanted.caller.user or f'uid {wanted.caller.uid}'} call service "
            f"'{wanted.service}' so; its administrator sees why in its log, under {call.tag}",
        )

    async def _begin(self, call: Call, wanted: ServiceCall, settings: Settings) -> str:
        assert self._guard is not None
        what = self._what(call, wanted)
        try:
            service = await trio.to_thread.run_sync(find_service, self._guard.directory, wanted.service)
            if service is None:
                log.warning("%s: there is no such service in %s", what, self._guard.directory.programs)
                raise Fault(FaultCode.NOT_THERE, f"this host has no service '{wanted.service}'")
            io, status = call.accept(wanted.io), call.accept(wanted.status)
            if isinstance(service, Function):
                function = await trio.to_thread.run_sync(service.load)
                log.info("%s: %s", what, service)

                async def run_it() -> None:
                    outcome = await run_function(what, function, self._vm, wanted, settings, io)
                    await self._finish(what, status, outcome)

                self._spawn(what, wanted.caller.uid, run_it, [io, status])
                return "function"
            running = await Running.start(what, service, self._vm, wanted, settings)
        except Unusable as error:
            log.error("%s: %s", what, error)
            raise Fault(
                FaultCode.FAILED,
                f"this host cannot run its service '{wanted.service}' now; its log says why, "
                f"under {call.tag}",
            ) from None
        log.info("%s: %s", what, service)

        async def run() -> None:
            outcome = await running.run(io)
            await self._finish(what, status, outcome)

        self._spawn(what, wanted.caller.uid, run, [io, status])
        return "program"

    def _spawn(
        self, what: str, uid: int, run: Callable[[], Awaitable[None]], streams: list[LinkStream]
    ) -> None:
        """Run a service that was begun, and give back what it holds, however it ends."""

        async def hold() -> None:
            with self._allowance.held(uid):
                try:
                    await run()
                except Exception:  # a bug of ours ends this call, not va-host
                    log.exception("%s: internal error", what)
                finally:
                    for stream in streams:
                        stream.reset(CANCELLED)

        # Not a task of the link: the next transport does not wait until a service has ended with the last
        # one. That the session is over, its streams tell it.
        trio.lowlevel.spawn_system_task(hold, name=what)

    async def _finish(self, what: str, status: LinkStream, outcome: Struct | tuple[int, str]) -> None:
        words = outcome[1] if isinstance(outcome, tuple) else _ended(outcome)
        log.info("%s: %s", what, words)
        # One who reads nothing of it holds no place for that.
        with trio.move_on_after(STATUS_TIME) as patience:
            await send_status(status, outcome)
        if patience.cancelled_caught:
            status.reset(CANCELLED)

    def _what(self, call: Call, wanted: ServiceCall) -> str:
        return f"{call.method} {call.tag}: {self._vm}: {wanted.service} for {wanted.caller}"


def _ended(outcome: Struct) -> str:
    how = "ended with status" if "code" in outcome else "ended by signal"
    number = outcome.get("code", outcome.get("signal"))
    return f"{how} {number!r}" + (", its time was over" if outcome.get("deadline") else "")
