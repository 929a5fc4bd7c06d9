"""All jobs of this agent, by their ids.

The rules:

1. Jobs belong to the agent, not to a link: a detached one outlives the session that started it. They end with
   the agent.
2. At most `RUNNING_MAX` run at a time, of which `DETACHED_MAX` are detached, as those hold output. Of
   detached jobs that have ended, the last `FINISHED_MAX` are kept until they are forgotten, and fewer if all
   output together is more than `OUTPUT_MAX`. An attached job that has ended is nobody's business any more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import trio

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.limits import MIB
from virtagent_protocol.stream import LinkStream

from .job import Job
from .launch import Started, start
from .process import Process
from .request import Request

log = logging.getLogger("virtagent.jobs")

#: Reason of a reset: a bug here.
FAILED = "failed"

#: Jobs at a time. Each costs a handful of descriptors, of which a process has 1024 by default.
RUNNING_MAX = 64
#: Detached ones among them: each holds up to 2 MiB of output.
DETACHED_MAX = 16
#: Detached jobs that have ended.
FINISHED_MAX = 64
#: Bytes of output of all jobs past which ended ones are forgotten, the oldest first.
OUTPUT_MAX = 32 * MIB
#: Processes being started at a time. A file server that does not answer can hold up that many.
STARTING_MAX = 8


class JobTable:
    """The table. `run` must be at work."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._jobs: dict[int, Job] = {}
        self._next = 1
        self._starting: list[Request] = []
        self._threads = trio.CapacityLimiter(STARTING_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let jobs be started, until cancelled; then end them all."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def find(self, number: int) -> Job:
        """Return the job of that id.

        Raises:
            Fault: INVALID_PARAMS: there is none.
        """
        try:
            return self._jobs[number]
        except KeyError:
            raise Fault(
                FaultCode.INVALID_PARAMS, f"there is no job {number}; va.jobs lists those there are"
            ) from None

    async def start(
        self,
        request: Request,
        io: LinkStream | None = None,
        stderr: LinkStream | None = None,
        status: LinkStream | None = None,
    ) -> Job:
        """Start a job. Cancelled: there is none.

        Args:
            request: what to run.
            io, stderr, status: the streams of an attached job; they are its own if this returns.

        Raises:
            Fault: QUEUE_FULL: there are too many; else see `launch.start`.
        """
        self._check_room(request)
        self._starting.append(request)
        try:
            started = await trio.to_thread.run_sync(start, request, limiter=self._threads)
        finally:
            self._starting.remove(request)
        await _checkpoint(started)
        if self._nursery is None:
            started.discard()
            raise Fault(FaultCode.NOT_READY, "the agent is ending")
        job = Job(self._next, request, Process(started))
        self._next += 1
        self._jobs[job.number] = job
        self._nursery.start_soon(self._run, job, io, stderr, status)
        return job

    def forget(self, number: int) -> None:
        """Drop a job that has ended, with its output.

        Raises:
            Fault: INVALID_PARAMS: there is none; FAILED: it runs.
        """
        if not self.find(number).over.is_set():
            raise Fault(FaultCode.FAILED, f"job {number} runs: signal it first")
        del self._jobs[number]

    async def _run(
        self, job: Job, io: LinkStream | None, stderr: LinkStream | None, status: LinkStream | None
    ) -> None:
        log.info(
            "job %d: pid %d%s", job.number, job.process.pid, ", detached" if job.request.detached else ""
        )
        try:
            await job.run(io, stderr, status)
        except Exception:
            log.exception("job %d: internal error", job.number)
            for stream in filter(None, (io, stderr, status)):
                stream.reset(FAILED)
        finally:
            del self._jobs[job.number]
            if job.request.detached:
                # Those that have ended stand in the order of their end, behind those that run.
                self._jobs[job.number] = job
                self._forget_old()
        log.info("job %d: %s", job.number, job.end())

    def _forget_old(self) -> None:
        finished = [job for job in self._jobs.values() if job.over.is_set()]
        size = sum(job.size for job in self._jobs.values())
        while len(finished) > FINISHED_MAX or (len(finished) > 1 and size > OUTPUT_MAX):
            oldest = finished.pop(0)
            size -= oldest.size
            del self._jobs[oldest.number]

    def _check_room(self, request: Request) -> None:
        running = [job.request for job in self if not job.over.is_set()] + self._starting
        if len(running) >= RUNNING_MAX:
            raise Fault(FaultCode.QUEUE_FULL, f"{len(running)} jobs run, and {RUNNING_MAX} may: end some")
        detached = sum(other.detached for other in running)
        if request.detached and detached >= DETACHED_MAX:
            raise Fault(
                FaultCode.QUEUE_FULL, f"{detached} detached jobs run, and {DETACHED_MAX} may: end some"
            )


async def _checkpoint(started: Started) -> None:
    """Discard what was started if whoever wanted it has given up meanwhile."""
    try:
        await trio.lowlevel.checkpoint()
    except trio.Cancelled:
        started.discard()
        raise


#: The jobs of this agent.
JOBS = JobTable()
