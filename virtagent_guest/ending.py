"""Ended by a signal, which is success: what the agent and a session's agent have in common."""

from __future__ import annotations

import logging
import signal

import trio

from virtagent_protocol.notify import notify

log = logging.getLogger("virtagent.guest")


async def end_on_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Cancel *scope* at SIGTERM or SIGINT; a task, started when it listens for them."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: stopping", signal.Signals(number).name)
            notify("STOPPING=1", status="stopping")
            scope.cancel()
