"""One agent on the bus: answers what is asked of it, in our words and in the Synadia protocol's."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from lmos_mesh import calls, codec, micro, subjects, synadia
from lmos_mesh.agent import Agent
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.context import Context
from lmos_mesh.errors import (
    AgentFailed,
    AgentNotFound,
    InvalidMessage,
    MeshError,
    NotFound,
    TooLarge,
)
from lmos_mesh.interactions import Action, AgentProperty
from lmos_mesh.invocation import Circumstances, split, value_of, written_as_json
from lmos_mesh.presence import Presence
from lmos_mesh.projections import adr32_metadata
from lmos_mesh.things import SHARED, Thing
from lmos_mesh.transport import Subscription

logger = logging.getLogger(__name__)

_PROPERTY = "property-"
_ANEW_S = 1.0
_ANEW_MOST_S = 30.0


class HostedAgent:
    """One agent on the bus."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.in_flight = 0
        self._subscriptions: list[Subscription] = []

    def home(self, bus: Bus) -> str:
        """The tenant that it is served from."""
        return self.agent.home(bus.tenant)

    async def begin(self, bus: Bus) -> None:
        """Answer for it from now on, and say that it is there."""
        agent = self.agent
        where = (self.home(bus), agent.name, agent.subset)
        self._bus = bus
        self._thing = Thing.model_validate(agent.thing(bus.tenant))
        self._presence = agent.presence = Presence(
            agent.name, agent.subset, agent.events, bus, tenant=self.home(bus)
        )
        await bus.respond(
            subjects.agent(*where),
            self._respond,
            queue=subjects.AGENT_QUEUE,
            concurrency=agent.concurrency,
            once=True,
        )
        await bus.respond(
            synadia.subject("prompt", *where),
            self._prompt,
            queue=synadia.QUEUE,
            concurrency=agent.concurrency,
        )
        await bus.respond(synadia.subject("status", *where), self._status, queue=synadia.QUEUE)
        await micro.announce(bus.transport, self._micro_service(bus))

    def begin_background(self) -> "list[asyncio.Task[Any] | None]":
        """Start what the agent does by itself."""
        return [
            self._bus.spawn(self._in_background(function), name=function.__name__)
            for function in self.agent.backgrounds
        ]

    async def _in_background(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        wait_s = _ANEW_S
        while True:
            try:
                return await function()
            except MeshError as exc:
                logger.warning(
                    "%s of agent %s failed, beginning anew: %s",
                    function.__name__,
                    self.agent.name,
                    exc,
                )
            except Exception:
                logger.exception(
                    "%s of agent %s failed, beginning anew", function.__name__, self.agent.name
                )
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _ANEW_MOST_S)

    def end(self) -> None:
        """It is on this mesh no longer."""
        self._presence.mesh.close()
        if self.agent.presence is self._presence:
            self.agent.presence = None

    def _micro_service(self, bus: Bus) -> micro.MicroService:
        agent = self.agent
        where = (self.home(bus), agent.name, agent.subset)
        return micro.MicroService(
            name=synadia.SERVICE,
            id=self._id(bus),
            version=agent.version,
            description=agent.description or f"Agent {agent.name}",
            metadata={
                **adr32_metadata(self._thing),
                "lmos_instance": bus.instance,
                "host": socket.gethostname(),
            },
            endpoints=(
                micro.MicroEndpoint(
                    name="prompt",
                    subject=synadia.subject("prompt", *where),
                    queue_group=synadia.QUEUE,
                    metadata={
                        "max_payload": f"{bus.transport.max_payload}B",
                        "attachments_ok": "false",
                    },
                ),
                micro.MicroEndpoint(
                    name="status",
                    subject=synadia.subject("status", *where),
                    queue_group=synadia.QUEUE,
                ),
                *(
                    micro.MicroEndpoint(
                        name=subjects.escape(action.capability.id),
                        subject=subjects.agent_invoke(*where, action.capability.id),
                        queue_group=subjects.AGENT_QUEUE,
                    )
                    for action in agent.actions
                ),
                *(
                    micro.MicroEndpoint(
                        name=f"{_PROPERTY}{subjects.escape(one.name)}-{verb}",
                        subject=subjects.agent_property(*where, one.name, verb),
                        queue_group=subjects.AGENT_QUEUE,
                    )
                    for one in agent.properties
                    for verb in (("read", "write") if one.writable else ("read",))
                ),
            ),
            tally=lambda name: bus.tally(
                f"agent.{subjects.escape(agent.name)}.{subjects.escape(agent.subset)}."
                + _operation(name)
            ),
        )

    def _id(self, bus: Bus) -> str:
        """A process may serve several agents; each is a service instance of its own."""
        return f"{bus.instance}-{synadia.session(self.agent.name, self.agent.subset)}"

    def heartbeat(self, bus: Bus) -> None:
        """Say that it is alive, to whoever knows the Synadia protocol only."""
        where = (self.home(bus), self.agent.name, self.agent.subset)
        payload = json.dumps(self._heartbeat(bus)).encode()
        bus.transport.publish(synadia.subject("hb", *where), payload)

    def _heartbeat(self, bus: Bus) -> synadia.Chunk:
        where = (self.home(bus), self.agent.name, self.agent.subset)
        return synadia.heartbeat(*where, self._id(bus))

    async def _status(self, call: Call) -> Any:
        call.as_json = True  # the request is empty, and the protocol knows nothing else
        return self._heartbeat(self._bus)

    async def _respond(self, call: Call) -> Any:
        """An action is invoked, or a property read or written."""
        tokens = call.subject.split(".")
        match tokens[5:]:
            case ["invoke", action]:
                return await self._invoke(subjects.unescape(action), call)
            case ["property", name, "read" | "write" as verb]:
                # A value may be a bare number, and whoever reads need not send anything.
                call.as_json = written_as_json(call.payload)
                found = self.agent.property_called(subjects.unescape(name))
                return (
                    await self._read(found, call)
                    if verb == "read"
                    else await self._write(found, call)
                )
            case _:
                raise NotFound(
                    f"agent {self.agent.name!r} answers to invoke.<capability>, "
                    "property.<name>.read and property.<name>.write only"
                )

    async def _invoke(self, id: str, call: Call) -> Any:
        action = self.agent.action(id)
        if action is None:
            can = ", ".join(one.capability.id for one in self.agent.actions)
            raise NotFound(
                f"agent {self.agent.name!r} has no capability {id!r}", hint=f"it has {can}"
            )
        given, circumstances = split(codec.decode_value(call.payload))
        call.notes["conversation"] = circumstances.conversation
        return await self._perform(action, given, self._context(call, circumstances))

    def _context(self, call: Call, circumstances: Circumstances) -> Context:
        return Context(call, circumstances, self._presence, tenant=self._tenant_of(call))

    def _tenant_of(self, call: Call) -> str:
        """Whose request it is: an agent of tenant `shared` is told by a header.

        Raises:
            AgentNotFound: It is of a tenant that the agent does not support.
        """
        home = self._thing.tenant
        tenant = subjects.unescape(call.headers.get(calls.TENANT, "")) if home == SHARED else ""
        if tenant and not self._thing.supports(tenant):
            raise AgentNotFound(
                f"agent {self.agent.name!r} ({self.agent.subset}) does not serve tenant {tenant!r}",
                hint="its argument `tenants` names whom it serves",
            )
        return tenant or home

    async def _read(self, one: AgentProperty, call: Call) -> Any:
        async with self._at_work(f"reading {one.name!r}", call) as context:
            return await one.read(context)

    async def _write(self, one: AgentProperty, call: Call) -> None:
        value = value_of(call.payload)
        async with self._at_work(f"writing {one.name!r}", call) as context:
            await one.write(value, context)

    async def _perform(self, action: Action, given: dict[str, Any], context: Context) -> Any:
        arguments = action.arguments(given)
        async with self._at_work(repr(action.capability.id), context=context):
            return await action.perform(arguments, context, self.agent.threads)

    @asynccontextmanager
    async def _at_work(
        self, what: str, call: Call | None = None, *, context: Context | None = None
    ) -> AsyncGenerator[Context]:
        """Run the agent's own code: counted, and what it raises told without its details."""
        if context is None:
            assert call is not None, "a context is of a call"
            context = self._context(call, Circumstances())
        self.in_flight += 1
        try:
            yield context
        except MeshError:
            raise
        except Exception as exc:
            logger.exception("agent %s failed at %s", self.agent.name, what)
            raise AgentFailed(
                f"agent {self.agent.name!r} failed at {what}: {type(exc).__name__}",
                hint="its log has the traceback: `lmos logs`",
            ) from exc
        finally:
            self.in_flight -= 1
            context.close()

    async def _prompt(self, call: Call) -> Any:
        """A prompt in the Synadia protocol; this answers by itself, in that protocol's chunks."""
        publish = self._bus.transport.publish
        reply, call.done = call.reply, True
        try:
            if not reply:
                return
            prompt = synadia.read_prompt(call.payload)
            if prompt.attachments:
                raise InvalidMessage(f"agent {self.agent.name!r} takes no attachments")
            action = self.agent.action_for(prompt.text)
            if action is None:
                raise NotFound(f"agent {self.agent.name!r} has no capability")
            publish(reply, synadia.acknowledged())
            circumstances = Circumstances(message=prompt.text)
            context = _PromptContext(
                call, circumstances, self._presence, publish, tenant=self._tenant_of(call)
            )
            async with self._keeping_alive(reply):
                output = await self._perform(action, _input_of(action, prompt), context)
            if not context.output() and output:
                text = output if isinstance(output, str) else json.dumps(output)
                publish(reply, synadia.response(text))
        except MeshError as error:
            if isinstance(error, TooLarge):  # what we send is not the caller's fault
                error = AgentFailed(f"agent {self.agent.name!r}: {error.message}")
            code, said = synadia.refusal(error)
            publish(reply, b"", headers={calls.ERROR_CODE: str(code), calls.ERROR: said})
        except asyncio.CancelledError:
            publish(reply, b"", headers={calls.ERROR_CODE: "500", calls.ERROR: "stopping"})
            publish(reply, b"")
            raise
        publish(reply, b"")

    @asynccontextmanager
    async def _keeping_alive(self, reply: str) -> AsyncGenerator[None]:
        """Say now and then that the work goes on; their clients give up on the silent."""
        loop = asyncio.get_running_loop()

        def say() -> None:
            nonlocal timer
            timer = loop.call_later(synadia.KEEP_ALIVE_S, say)
            with suppress(MeshError):
                self._bus.transport.publish(reply, synadia.acknowledged())

        timer = loop.call_later(synadia.KEEP_ALIVE_S, say)
        try:
            yield
        finally:
            timer.cancel()


def _operation(endpoint: str) -> str:
    """The last tokens of the subject of an endpoint of that name."""
    if not endpoint.startswith(_PROPERTY):
        return f"invoke.{endpoint}"
    name, _, verb = endpoint.removeprefix(_PROPERTY).rpartition("-")
    return f"property.{name}.{verb}"


def _input_of(action: Action, prompt: synadia.Prompt) -> dict[str, Any]:
    from lmos_mesh.invocation import input_for

    return input_for(action.capability, prompt.text)


class _PromptContext(Context):
    """A context whose caller takes the Synadia protocol's chunks."""

    def __init__(
        self,
        call: Call,
        circumstances: Circumstances,
        presence: Presence,
        publish: Callable[[str, bytes], None],
        *,
        tenant: str,
    ) -> None:
        # The subjects of this protocol do not begin with the tenant.
        super().__init__(call, circumstances, presence, tenant=tenant)
        self._publish_chunk = publish

    async def say(self, text: str) -> None:
        """See `Context.say`."""
        if text:
            self._said.append(text)
            self._publish_chunk(self._call.reply, synadia.response(text))
