"""What a capability knows of the request that it answers."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic_core import to_jsonable_python

from lmos_mesh.calls import Call
from lmos_mesh.errors import HandedOver, InvalidMessage
from lmos_mesh.invocation import ANONYMIZATION, Circumstances
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import Answer, FoundThing, Utterance
from lmos_mesh.presence import AgentEvent, Presence

DataT = TypeVar("DataT")
ResultT = TypeVar("ResultT")


class Context:
    """What a capability knows of the request it answers, and its way to the caller.

    Ask for it with a parameter of this type.
    """

    def __init__(
        self,
        call: Call,
        circumstances: Circumstances,
        presence: Presence,
        *,
        tenant: str | None = None,
    ) -> None:
        self._call = call
        self._tenant = call.notes["tenant"] = tenant or call.tenant
        self._circumstances = circumstances
        self._presence = presence
        self._mesh: Mesh | None = None
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()
        self._said: list[str] = []

    @property
    def message(self) -> str:
        """The user's own words; empty if the action was invoked with input only."""
        return self._circumstances.message

    @property
    def conversation(self) -> str:
        """The conversation's id; empty outside of one."""
        return self._circumstances.conversation

    @property
    def turn(self) -> str:
        """The turn's id; empty outside of a conversation."""
        return self._circumstances.turn

    @property
    def user(self) -> str:
        """Who asks; empty if unknown."""
        return self._circumstances.user

    @property
    def channel(self) -> str:
        """The way in; empty if unknown."""
        return self._circumstances.channel

    @property
    def channel_settings(self) -> Mapping[str, Any]:
        """What the channel says of its answers: `answers: short`, `markup: none`, …."""
        return self._circumstances.settings

    @property
    def subset(self) -> str:
        """The release line that answers the conversation; empty if unknown."""
        return self._circumstances.subset

    @property
    def parameters(self) -> Mapping[str, str]:
        """What the caller says of the way in."""
        return self._circumstances.parameters

    @property
    def attributes(self) -> Mapping[str, str]:
        """What the caller says of the user, besides the id."""
        return self._circumstances.attributes

    @property
    def user_token(self) -> str | None:
        """What may be shown to others in the user's name. Neither keep it nor log it."""
        return self._circumstances.user_token

    @property
    def anonymization(self) -> Sequence[Mapping[str, Any]]:
        """What stands for what in the message: objects of `type`, `value` and `replacement`."""
        return self._circumstances.anonymization or ()

    @property
    def shadow(self) -> bool:
        """Whether nobody will see the answer: what is done beside it must be left alone."""
        return self._circumstances.shadow

    @property
    def handovers(self) -> Sequence[str]:
        """The agents that have handed the request over, in order; empty if it came here first."""
        return self._circumstances.handovers

    @property
    def history(self) -> Sequence[Utterance]:
        """What was said before in this conversation, oldest first."""
        return self._circumstances.history

    @property
    def tenant(self) -> str:
        """Who the request belongs to; of an agent that serves many tenants, the one that asks."""
        return self._tenant

    @property
    def task(self) -> str:
        """The id of this piece of work. A repeated delivery has the same id."""
        return self._call.task

    @property
    def deadline(self) -> float | None:
        """Unix seconds after which nobody waits for the answer; None for no limit."""
        return self._call.deadline

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline; None for no limit."""
        return None if self.deadline is None else self.deadline - time.time()

    @property
    def cancelled(self) -> bool:
        """Whether the caller has left. A coroutine is cancelled; a thread must look here."""
        return self._cancelled.is_set()

    @property
    def mesh(self) -> Mesh:
        """The tenant's part of the mesh: who else is there, and what they answer.

        What is asked there is asked on the channel of the request and keeps its deadline, and
        what is watched ends with it.
        """
        if self._mesh is None:
            self._mesh = self._presence.mesh.part(channel=self.channel, tenant=self.tenant)
        return self._mesh

    async def ask(
        self, message: str, *, agent: str | FoundThing | None = None, **more: Any
    ) -> Answer:
        """Have another agent answer, in the user's name and on the same channel; see `Mesh.ask`.

        The conversation stays the user's own: what is asked here is not kept. An agent that the
        request has passed through already is not asked again.

        Raises:
            LoopDetected: Agents ask each other in a circle; the error names the path.
            AgentNotFound: The channel does not have it.
        """
        said = self._circumstances
        known: dict[str, Any] = {
            "user": said.user or None,
            "attributes": said.attributes,
            "parameters": said.parameters,
            "user_token": said.user_token,
            "anonymization": said.anonymization,
            "store": False,
        }
        if said.channel:
            own = agent.subset if isinstance(agent, FoundThing) else said.subset
            known |= {"channel": said.channel, "subset": own or None}
        return await self.mesh.ask(message, agent=agent, **(known | more))

    def hand_over(
        self,
        *,
        to: str | FoundThing | None = None,
        capability: str | None = None,
        message: str | None = None,
    ) -> NoReturn:
        """Have another agent of the channel answer instead; nothing that comes after this is done.

        What was said so far stays part of the answer, and the conversation goes on with the other
        agent. It is the runtime that asks it, so whoever invokes an action by hand gets the error.

        Args:
            to: Who; by default whoever of the channel has the capability.
            capability: Id or name of what it is to do; by default what fits the message.
            message: What it is asked; by default the user's own words.

        Raises:
            HandedOver: Always; leave it uncaught.
            InvalidMessage: Neither `to` nor `capability` is given.
        """
        name = to.name if isinstance(to, FoundThing) else to
        if not name and not capability:
            raise InvalidMessage(
                "an agent hands over to nobody", hint="name `to`, `capability`, or both"
            )
        whom = f"agent {name!r}" if name else f"whoever has capability {capability!r}"
        given = {"to": name, "capability": capability, "question": message}
        raise HandedOver(
            f"this is for {whom}",
            hint="ask the runtime, which follows it",
            **{member: value for member, value in given.items() if value},
        )

    async def emit(self, event: "AgentEvent[DataT] | str", data: "DataT | None" = None) -> None:
        """Tell whoever listens that something has happened; see `Agent.emit`."""
        await self._presence.emit(event, data)

    async def say(self, text: str) -> None:
        """Send a piece of the answer now."""
        if text:
            self._said.append(text)
            await self._call.send("delta", text)

    async def status(self, **members: Any) -> None:
        """Tell the caller what is going on; not part of the answer."""
        await self._call.send("status", to_jsonable_python(members))

    async def anonymize(self, entities: Iterable[Mapping[str, Any]]) -> None:
        """Say what stands for what in the answer, where that is not what it is in the message.

        Args:
            entities: All of them, objects of `type`, `value` and `replacement`.
        """
        told = [dict(one) for one in entities]
        await self.status(**{ANONYMIZATION: told})

    def say_from_thread(self, text: str) -> None:
        """`say` for plain functions."""
        self.from_thread(self.say(text))

    def from_thread(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """For plain functions: have a coroutine done, e.g. `context.mesh.find()`, and wait."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def cancel(self) -> None:
        """Note that the caller has left."""
        self._cancelled.set()

    def close(self) -> None:
        """The request is answered: what it watches ends."""
        if self._mesh is not None:
            self._mesh.close()

    def output(self) -> str:
        """All that was said so far."""
        return "".join(self._said)
