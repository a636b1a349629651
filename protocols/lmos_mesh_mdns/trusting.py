"""Answers on the bus for found agents, where the network is trusted."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lmos_mesh import codec, subjects
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.errors import DeadlineExceeded, NotFound, Unavailable
from lmos_mesh.invocation import split
from lmos_mesh.lease import LeaseKeeper
from lmos_mesh.liveness import Served
from lmos_mesh.membership import Membership
from lmos_mesh.things import ThingKey
from lmos_mesh.transport import Subscription
from lmos_mesh_mdns.fetching import Fetcher, NotRead
from lmos_mesh_mdns.forms import Form, answer_from
from lmos_mesh_mdns.found import UnusableAnswer
from lmos_mesh_mdns.records import Target

logger = logging.getLogger(__name__)

_ANSWER_S = 300.0


@dataclass(slots=True)
class _Standing:
    served: Served
    forms: dict[str, Form]
    target: Target
    subscription: Subscription | None = None


class StandIn:
    """Serves found agents by calling them over HTTP, and says in the lease that it does."""

    def __init__(self, bus: Bus, fetcher: Fetcher) -> None:
        self._bus = bus
        self._fetcher = fetcher
        self._standing: dict[ThingKey, _Standing] = {}
        self._lease: LeaseKeeper | None = None

    def served(self) -> tuple[Served, ...]:
        """What the lease says."""
        return tuple(one.served for one in self._standing.values() if one.subscription is not None)

    def keep_in(self, lease: LeaseKeeper) -> None:
        """Say in this lease what is served."""
        self._lease = lease

    async def begin(
        self, key: ThingKey, version: str, forms: dict[str, Form], target: Target
    ) -> None:
        """Answer for an agent from now on, or differently from now on."""
        known = self._standing.get(key)
        if known is not None:
            known.forms, known.target = forms, target
            if known.served.version == version:
                return
            known.served = Served(name=key.name, subset=key.subset, version=version)
        else:
            served = Served(name=key.name, subset=key.subset, version=version)
            standing = self._standing[key] = _Standing(served, forms, target)
            subscription = await self._bus.respond(
                subjects.agent(*key), self._respond, queue=subjects.AGENT_QUEUE, once=True
            )
            if self._standing.get(key) is not standing:
                await subscription.unsubscribe()  # it has gone meanwhile
                return
            standing.subscription = subscription
            logger.info("answering for %s (%s) by calling %s", key.name, key.subset, target.url)
        self._changed()

    async def end(self, key: ThingKey) -> None:
        """Answer for an agent no longer."""
        standing = self._standing.pop(key, None)
        if standing is None:
            return
        self._changed()
        if standing.subscription is not None:
            await standing.subscription.unsubscribe()

    def yield_to_ours(self, changed: Iterable[ThingKey], membership: Membership) -> None:
        """Give a name back at once where an agent of the mesh itself has it now."""
        for key in changed:
            entered = membership.get(key) if key in self._standing else None
            if entered is not None and not entered.thing.external:
                self._bus.spawn(self.end(key), name="yield")

    def _changed(self) -> None:
        if self._lease is not None:
            self._lease.changed()

    async def _respond(self, call: Call) -> Any:
        ids = [subjects.unescape(one) for one in call.subject.split(".")]
        match ids:
            case ["lmos", tenant, "agent", name, subset, "invoke", action]:
                standing = self._standing.get(ThingKey(tenant, name, subset))
            case _:
                raise NotFound("a found agent answers to invoke.<capability> only")
        if standing is None:
            raise Unavailable(f"agent {name!r} has just left the local network", hint="ask again")
        form = standing.forms.get(action)
        if form is None:
            raise NotFound(
                f"agent {name!r} has no capability {action!r}",
                hint=f"it has {', '.join(standing.forms)}",
            )
        # Who asks and what was said before stays here: it is somebody else's agent.
        given, _ = split(codec.decode_value(call.payload))
        remaining_s = call.remaining_s
        return await self._call(
            standing.target, form, given, _ANSWER_S if remaining_s is None else remaining_s
        )

    async def _call(self, target: Target, form: Form, given: Any, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                answered = await self._fetcher.invoke(target, form.method, form.url, given)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {form.url} within {timeout_s:g} s") from None
        except (NotRead, UnusableAnswer) as exc:
            raise Unavailable(str(exc)) from None
        return answer_from(*answered)
