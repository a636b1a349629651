"""Scales, restarts, drains, stops and starts agents: in the cluster, or with those who run them."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lmos_mesh import audit, subjects
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.directory import Directory
from lmos_mesh.errors import (
    AgentNotFound,
    Conflict,
    InstanceLost,
    InvalidMessage,
    MeshError,
    NotFound,
    Unavailable,
)
from lmos_mesh.liveness import Lease
from lmos_mesh.membership import how_to_start
from lmos_mesh.messages import (
    GET_RUNS,
    STEER_RUN,
    AgentSteered,
    GetRuns,
    RunFile,
    Runs,
    RunSteered,
    SteerAgent,
    SteerRun,
)
from lmos_mesh.things import ThingKey
from lmos_mesh.watched_call import watched
from lmos_mesh_operator.sharing import Share, shared
from lmos_mesh_operator.steering_words import by_themselves, in_words, message, named

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_DECIDED_AGAIN = 5
# Asking what runs takes no time; what changes it, as long as the caller waits.
_ASKED_S = 3.0
_CHANGED_S = 600.0


class Elsewhere(Protocol):
    """Steers agents that run in a cluster."""

    async def steer(self, request: SteerAgent, call: Call) -> AgentSteered:
        """Change how an agent runs; `NotFound` if it does not run there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A file with the agent, and who runs it."""

    runner: str
    runs: Runs
    file: RunFile

    @property
    def running(self) -> int:
        return sum(one.state == "running" for one in self.file.instances)

    @property
    def where(self) -> str:
        return f"lmos run {self.file.file} on {self.runs.host} (pid {self.runs.pid})"

    @property
    def share(self) -> Share:
        return Share(
            runner=self.runner,
            file=self.file.file,
            started=min((one.started for one in self.file.instances if one.started), default=0.0),
            instances=self.running,
            limit=self.runs.limit,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What one runner is told about one file."""

    run: _Run
    request: SteerRun


class Steering:
    """Answers for the agents of every tenant; on every replica of the operator.

    Args:
        bus: Where those who run agents are asked.
        directory: Who is there.
        elsewhere: Is asked first, if there is a cluster.
    """

    def __init__(
        self, bus: Bus, directory: Directory, *, elsewhere: Elsewhere | None = None
    ) -> None:
        self._bus = bus
        self._directory = directory
        self._elsewhere = elsewhere

    async def steer(self, request: SteerAgent, call: Call) -> AgentSteered:
        """Change how an agent runs.

        Raises:
            AgentNotFound: The tenant has no such agent.
            NotFound: It has no such instance.
            Conflict: Nobody runs it who could be told; or somebody changes it all the time.
            InvalidMessage: It cannot be told so.
            Unavailable: Who runs it does not answer.
            AgentFailed: Its new instances do not serve.
        """
        if request.action == "scale" and request.instances is None:
            raise InvalidMessage("scale needs `instances`", field="/instances")
        if request.action == "scale" and request.instance:
            raise InvalidMessage("one instance cannot be scaled", field="/instance")
        outcome: asyncio.Future[AgentSteered] = asyncio.get_running_loop().create_future()
        # Not the caller's alone: when that has gone, what is begun is still ended and written down.
        if self._bus.spawn(self._carry(request, call, outcome), name="steer") is None:
            raise Unavailable("the operator is stopping", hint="try again")
        return await asyncio.shield(outcome)

    async def _carry(
        self, request: SteerAgent, call: Call, outcome: "asyncio.Future[AgentSteered]"
    ) -> None:
        try:
            outcome.set_result(await self._decide(request, call))
        except Exception as exc:
            outcome.set_exception(exc)
            # Whoever asked may have gone, and then nobody looks at it.
            outcome.exception()
        finally:
            outcome.cancel()

    async def _decide(self, request: SteerAgent, call: Call) -> AgentSteered:
        if self._elsewhere is not None:
            try:
                return await self._elsewhere.steer(request, call)
            except NotFound as exc:
                # A person may run it, with a connection to the same mesh.
                if not self._runners(request, call.tenant):
                    if self._is_known(request, call.tenant):
                        raise
                    raise self._not_there(request, call.tenant) from exc
        for decided in range(_DECIDED_AGAIN):
            try:
                return await self._steer(request, call, again=decided > 0)
            except _Changed:
                continue
        raise Conflict(f"the instances of {named(request)} change all the time", hint="try again")

    async def _steer(self, request: SteerAgent, call: Call, *, again: bool) -> AgentSteered:
        tenant = call.tenant
        runs = await self._runs(request, tenant)
        if not runs:
            raise self._not_there(request, tenant)
        orders = self._orders(request, runs, tenant)
        before = sum(one.running for one in runs)
        try:
            results = await self._give(orders, tenant)
        except _Changed:
            raise
        except MeshError as exc:
            self._write_down(request, call, before=before, failed=str(exc))
            raise
        after = before + sum(one.instances - one.before for one in results)
        done = all(one.done for one in results)
        concerned = [one.run for one in orders] or runs
        also = _also(request, concerned)
        touched = _touched(request, orders, results)
        steered = AgentSteered(
            agent=request.agent,
            subset=request.subset,
            instances=after,
            where=tuple(one.where for one in concerned),
            message=message(request, before, after, touched, done=done, also=also),
            done=done,
            also=also,
        )
        # If all is as was asked, nothing has come to pass; before it was decided again, some may.
        if orders or again:
            self._write_down(request, call, before=before, after=after)
        logger.info("%s: %s", named(request), steered.message)
        return steered

    def _write_down(self, request: SteerAgent, call: Call, **came_of_it: int | str | None) -> None:
        what = request.model_dump(include={"agent", "subset", "action", "instance"})
        audit.write(self._bus, call.tenant, "steered", {**what, **came_of_it}, caller=call.caller)

    # -- who runs it --

    def _runners(self, request: SteerAgent, tenant: str) -> list[Lease]:
        return [
            lease
            for of, lease, _ in self._directory.membership.leases()
            if of == tenant
            and any((one.name, one.subset) == (request.agent, request.subset) for one in lease.runs)
        ]

    async def _runs(self, request: SteerAgent, tenant: str) -> list[_Run]:
        """The files with the agent, as those who run them say it is now."""
        runners = self._runners(request, tenant)
        asked = await _all([self._ask(one, tenant) for one in runners])
        answered: list[tuple[Lease, Runs]] = []
        for lease, runs in zip(runners, asked, strict=True):
            if isinstance(runs, MeshError):
                raise runs
            answered.append((lease, runs))
        return [
            _Run(runner=lease.instance, runs=runs, file=file)
            for lease, runs in answered
            for file in runs.files
            if any((one.name, one.subset) == (request.agent, request.subset) for one in file.agents)
        ]

    async def _ask(self, lease: Lease, tenant: str) -> Runs:
        endpoint = GET_RUNS.of(subjects.escape(lease.instance))
        try:
            return await self._bus.call(endpoint, GetRuns(), tenant=tenant, timeout_s=_ASKED_S)
        except MeshError as exc:
            raise Unavailable(
                f"`lmos run` on {lease.host} (pid {lease.pid}) does not answer",
                hint="try again: a moment after its death it is not asked any more",
            ) from exc

    def _is_known(self, request: SteerAgent, tenant: str) -> bool:
        membership = self._directory.membership
        if membership.meant(tenant, request.agent, request.subset) is not None:
            return True
        return membership.live(ThingKey(tenant, request.agent, request.subset))

    def _not_there(self, request: SteerAgent, tenant: str) -> MeshError:
        """Why nobody can be told."""
        membership = self._directory.membership
        if self._is_known(request, tenant):
            key = ThingKey(tenant, request.agent, request.subset)
            key = membership.meant(*key) or key
            if key.tenant != tenant:
                return Conflict(
                    f"{named(request)} serves {tenant!r} from tenant {key.tenant!r}, and is told "
                    f"to {request.action} only where it is run",
                    hint=f"`--tenant {key.tenant}`, or the tenant in which `lmos run` has it",
                )
            return Conflict(
                f"nobody can be told to {request.action} {named(request)}: "
                f"{by_themselves(membership.instances(key))}",
                hint="have it run by `lmos run FILE`, and end what was started otherwise",
            )
        if subsets := membership.subsets(tenant, request.agent):
            return AgentNotFound(
                f"agent {request.agent!r} has no subset {request.subset!r} in {tenant!r}",
                hint=f"it has {', '.join(subsets)}",
                near=subsets,
            )
        near = membership.near(tenant, request.agent)
        return AgentNotFound(
            f"agent {request.agent!r} does not exist in {tenant!r}",
            hint=f"did you mean {', '.join(near)}?" if near else "`lmos agents` lists who is there",
            near=near,
        )

    # -- what they are told --

    def _orders(self, request: SteerAgent, runs: Sequence[_Run], tenant: str) -> list[_Order]:
        if request.action == "scale":
            return _scaled(request, runs)
        if request.instance:
            return [_of_one(request, runs)]
        orders = [
            _Order(run=one, request=SteerRun(file=one.file.file, action=request.action))
            for one in runs
        ]
        running = [one for one in orders if one.run.running]
        if request.action == "start":
            # Else all were scaled to none: one of them begins again.
            return [one for one in orders if _is_stopped(one.run)] or (
                [] if running else orders[:1]
            )
        if request.action == "restart" and not running:
            key = ThingKey(tenant, request.agent, request.subset)
            raise Conflict(f"{named(request)} is stopped", hint=how_to_start(key))
        return running

    async def _give(self, orders: Sequence[_Order], tenant: str) -> list[RunSteered]:
        """Tell all of them at once; each does its own one after the other."""
        given = await _all([self._give_one(one, tenant) for one in orders])
        done = [one for one in given if isinstance(one, RunSteered)]
        failed = [one for one in given if isinstance(one, MeshError)]
        if changed := [one for one in failed if isinstance(one, _Changed)]:
            raise changed[0]
        if failed:
            failed[0].details["done"] = [one.file for one in done]
            raise failed[0]
        return done

    async def _give_one(self, order: _Order, tenant: str) -> RunSteered:
        endpoint = STEER_RUN.of(subjects.escape(order.run.runner))
        try:
            return await watched(
                self._bus, endpoint, order.request, tenant=tenant, timeout_s=_CHANGED_S
            )
        except InstanceLost as exc:
            raise Unavailable(
                f"{order.run.where} has ended before it was done",
                hint="its agents end with it; `lmos agents` shows what runs",
            ) from exc
        except Conflict as exc:
            if order.request.revision is None:
                raise
            raise _Changed(str(exc)) from exc


class _Changed(Conflict):
    """What was decided upon is something else by now."""


async def _all(
    work: Sequence[Coroutine[Any, Any, ResultT]],
) -> "list[ResultT | MeshError]":
    """What comes of all of them, whatever comes of one."""

    async def kept(one: Coroutine[Any, Any, ResultT]) -> ResultT | MeshError:
        try:
            return await one
        except MeshError as exc:
            return exc

    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(kept(one)) for one in work]
    return [one.result() for one in begun]


def _scaled(request: SteerAgent, runs: Sequence[_Run]) -> list[_Order]:
    wanted = request.instances or 0
    limit = sum(one.runs.limit for one in runs)
    if wanted > limit:
        raise InvalidMessage(
            f"{wanted} instances of {named(request)} are more than the {limit} that may run",
            hint="start `lmos run` on other machines, too",
            field="/instances",
        )
    shares = shared(wanted, [one.share for one in runs])
    return [
        _Order(
            run=run,
            request=SteerRun(
                file=run.file.file,
                action="scale",
                instances=share.instances,
                revision=run.file.revision,
            ),
        )
        for run, share in zip(runs, shares, strict=True)
        if share.instances != run.running
    ]


def _of_one(request: SteerAgent, runs: Sequence[_Run]) -> _Order:
    known = {one.instance: (run, one) for run in runs for one in run.file.instances}
    if request.instance not in known:
        listed = [f"{one.instance} ({one.state})" for _, one in known.values()]
        raise NotFound(
            f"{named(request)} has no instance {request.instance!r} that could be told to "
            f"{request.action}",
            hint=f"there are {', '.join(listed)}" if listed else "none is run",
        )
    run, instance = known[request.instance]
    if (instance.state == "running") == (request.action == "start"):
        raise Conflict(f"instance {request.instance!r} is {instance.state} already")
    return _Order(
        run=run,
        request=SteerRun(file=run.file.file, action=request.action, instance=request.instance),
    )


def _touched(request: SteerAgent, orders: Sequence[_Order], results: Sequence[RunSteered]) -> int:
    """How many instances something has happened to."""
    if request.instance:
        return 1
    if request.action == "restart":
        return sum(one.run.running for one in orders)
    if request.action == "start":
        return sum(
            max(1, sum(one.state == "stopped" for one in order.run.file.instances))
            for order in orders
        )
    return sum(abs(one.instances - one.before) for one in results)


def _is_stopped(run: _Run) -> bool:
    return any(one.state == "stopped" for one in run.file.instances)


def _also(request: SteerAgent, runs: Sequence[_Run]) -> tuple[str, ...]:
    """The other agents of the processes of this one."""
    others = {(one.name, one.subset) for run in runs for one in run.file.agents}
    others.discard((request.agent, request.subset))
    return tuple(in_words(*one) for one in sorted(others))
