"""A process that serves agents: subscribed, registered, alive, and gone with a goodbye."""

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from pydantic import Field

from lmos_mesh import calls, codec, micro, subjects, synadia
from lmos_mesh.agent import Agent
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.context import Context
from lmos_mesh.errors import (
    AgentFailed,
    AgentNotFound,
    InvalidDescription,
    InvalidMessage,
    MeshError,
    NotFound,
    SettingsError,
    TooLarge,
)
from lmos_mesh.interactions import Action, AgentProperty
from lmos_mesh.invocation import Circumstances, split, value_of, written_as_json
from lmos_mesh.lease import LeaseKeeper
from lmos_mesh.liveness import Served
from lmos_mesh.messages import (
    DEREGISTER,
    FIND_THINGS,
    REGISTER,
    Deregister,
    FindThings,
    Register,
)
from lmos_mesh.presence import Presence
from lmos_mesh.projections import adr32_metadata
from lmos_mesh.service import run_forever, run_service
from lmos_mesh.settings import Settings
from lmos_mesh.thing_faults import faults_of, label_of
from lmos_mesh.things import SHARED, Thing
from lmos_mesh.transport import Subscription

logger = logging.getLogger(__name__)

_RETRY_S = 0.25
_RETRY_MOST_S = 5.0
_PROPERTY = "property-"
_ANEW_S = 1.0
_ANEW_MOST_S = 30.0


class AgentSettings(Settings):
    """Settings of an agent process.

    Attributes:
        agent_register_timeout_s: How long one attempt to register may take.
        agent_check_s: How often to look whether the registry still describes what is served.
    """

    agent_register_timeout_s: float = Field(default=5.0, gt=0)
    agent_check_s: float = Field(default=10.0, gt=0)


def run_agents(agents: Sequence[Agent]) -> None:
    """Serve agents as this process until it is told to stop."""
    name = agents[0].name if agents else "agents"
    run_service(name or "agent", AgentSettings, lambda settings: AgentHost(agents, settings))
    if hanging := sum(len(agent.threads.running) for agent in agents):
        # A thread cannot be stopped, and the interpreter would wait for it.
        logger.warning("%d functions are still running in threads; leaving without them", hanging)
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


class AgentHost:
    """Serves agents of one process."""

    def __init__(self, agents: Sequence[Agent], settings: AgentSettings | None = None) -> None:
        self._settings = settings or AgentSettings()
        self._hosted = [_Hosted(agent) for agent in agents]
        self._leases: list[LeaseKeeper] = []
        self._bus: Bus | None = None
        self._reconnected = asyncio.Event()
        self._own: list[asyncio.Task[Any] | None] = []

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Join the mesh and serve until cancelled."""
        self._bus = bus
        self._check(bus.tenant)
        # One for each tenant that it serves from: `shared` may be one beside its own.
        homes = sorted({hosted.home(bus) for hosted in self._hosted})
        self._leases = [
            LeaseKeeper(bus, partial(self._served, home), tenant=home) for home in homes
        ]
        begun: list[_Hosted] = []
        try:
            for hosted in self._hosted:
                begun.append(hosted)
                await hosted.begin(bus)
            for lease in self._leases:
                await lease.begin()
            for hosted in self._hosted:
                await self._register(bus, hosted.agent)
            bus.spawn(self._heartbeats(bus), name="heartbeats")
            bus.transport.on_reconnect(self._reconnected.set)
            self._own.append(bus.spawn(self._keep_registered(bus), name="registration"))
            for hosted in self._hosted:
                self._own += hosted.begin_background()
            ready()
            await run_forever()
        finally:
            for hosted in begun:
                hosted.end()

    async def leave(self) -> None:
        """Say goodbye before draining: nothing new is routed here."""
        bus = self._bus
        if bus is None or not self._leases:
            return
        for task in self._own:
            if task is not None:
                task.cancel()
        if not bus.transport.connected:
            return  # nobody would hear it; the lease ends by itself
        for lease in self._leases:
            await lease.leave()
        for hosted in self._hosted:
            request = Deregister(
                name=hosted.agent.name, subset=hosted.agent.subset, leaving=bus.instance
            )
            with suppress(MeshError):
                await bus.call(DEREGISTER, request, tenant=hosted.home(bus), timeout_s=1.0)

    def _check(self, tenant: str) -> None:
        if not self._hosted:
            raise SettingsError("no agent to serve", hint="make one: agent = Agent('my-agent')")
        for hosted in self._hosted:
            raw = hosted.agent.thing(tenant)
            if faults := [*faults_of(raw), *hosted.agent.faults()]:
                raise InvalidDescription.of(label_of(raw), faults)
        names = [(hosted.agent.name, hosted.agent.subset) for hosted in self._hosted]
        if twice := {name for name, subset in names if names.count((name, subset)) > 1}:
            raise SettingsError(f"two agents of one process are called {', '.join(sorted(twice))}")

    def _served(self, home: str) -> tuple[Served, ...]:
        return tuple(
            Served(
                name=hosted.agent.name,
                subset=hosted.agent.subset,
                version=hosted.agent.version,
                in_flight=hosted.in_flight,
                concurrency=hosted.agent.concurrency,
            )
            for hosted in self._hosted
            if self._bus is not None and hosted.home(self._bus) == home
        )

    async def _register(self, bus: Bus, agent: Agent) -> None:
        """Register, waiting for a registry for as long as it takes.

        Raises:
            InvalidDescription: It is refused; every reason is named.
        """
        wait_s = _RETRY_S
        while True:
            try:
                await bus.call(
                    REGISTER,
                    Register(thing=agent.thing(bus.tenant)),
                    tenant=agent.home(bus.tenant),
                    timeout_s=self._settings.agent_register_timeout_s,
                )
                if wait_s > _RETRY_S:
                    # As loud as what it takes back, or that stays the last word.
                    logger.warning("%s is registered now", agent.name)
                return
            except InvalidDescription:
                raise
            except MeshError as exc:
                logger.warning("not registered yet, trying again: %s", exc)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _RETRY_MOST_S)

    async def _keep_registered(self, bus: Bus) -> None:
        """Register again where the registry has lost us, or describes a version that is gone."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.agent_check_s):
                    await self._reconnected.wait()
            lost = self._reconnected.is_set()
            self._reconnected.clear()
            for hosted in self._hosted:
                try:
                    if lost or await self._is_outdated(bus, hosted.agent):
                        await self._register(bus, hosted.agent)
                except MeshError as exc:
                    logger.warning("cannot see to the registration: %s", exc)

    async def _is_outdated(self, bus: Bus, agent: Agent) -> bool:
        """Whether our entry is gone, or describes a version that no instance serves any more."""
        wanted = FindThings(name=agent.name, subset=agent.subset, live=None)
        home = agent.home(bus.tenant)
        things = (await bus.call(FIND_THINGS, wanted, tenant=home)).things
        found = [one for one in things if one.tenant == home]
        return not found or any(
            one.version != agent.version
            and one.version not in {instance.version for instance in one.instances}
            for one in found
        )

    async def _heartbeats(self, bus: Bus) -> None:
        while True:
            for hosted in self._hosted:
                with suppress(MeshError):
                    hosted.heartbeat(bus)
            await asyncio.sleep(synadia.INTERVAL_S)


class _Hosted:
    """One agent on the bus."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.in_flight = 0
        self._subscriptions: list[Subscription] = []

    def home(self, bus: Bus) -> str:
        """The tenant that it is served from."""
        return self.agent.home(bus.tenant)

    async def begin(self, bus: Bus) -> None:
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
