"""A process that serves agents: subscribed, registered, alive, and gone with a goodbye."""

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic import Field

from lmos_mesh import calls, codec, micro, subjects, synadia
from lmos_mesh.agent import Action, Agent, Context
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.errors import (
    AgentFailed,
    InvalidDescription,
    InvalidMessage,
    MeshError,
    NotFound,
    SettingsError,
    TooLarge,
)
from lmos_mesh.invocation import Circumstances, split
from lmos_mesh.lease import LeaseKeeper
from lmos_mesh.membership import Served
from lmos_mesh.messages import (
    DEREGISTER,
    FIND_THINGS,
    REGISTER,
    Deregister,
    FindThings,
    Register,
)
from lmos_mesh.service import run_forever, run_service
from lmos_mesh.settings import Settings
from lmos_mesh.things import faults_of, label_of
from lmos_mesh.transport import Subscription

logger = logging.getLogger(__name__)

_RETRY_S = 0.25
_RETRY_MOST_S = 5.0


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
    if hanging := sum(len(agent.in_threads) for agent in agents):
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
        self._lease: LeaseKeeper | None = None
        self._bus: Bus | None = None
        self._reconnected = asyncio.Event()
        self._keeping: asyncio.Task[Any] | None = None

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Join the mesh and serve until cancelled."""
        self._bus = bus
        self._check(bus.tenant)
        self._lease = LeaseKeeper(bus, self._served)
        for hosted in self._hosted:
            await hosted.begin(bus)
        await self._lease.begin()
        for hosted in self._hosted:
            await self._register(bus, hosted.agent)
        bus.spawn(self._heartbeats(bus), name="heartbeats")
        bus.transport.on_reconnect(self._reconnected.set)
        self._keeping = bus.spawn(self._keep_registered(bus), name="registration")
        ready()
        await run_forever()

    async def leave(self) -> None:
        """Say goodbye before draining: nothing new is routed here."""
        bus, lease = self._bus, self._lease
        if bus is None or lease is None:
            return
        if self._keeping is not None:
            self._keeping.cancel()
        if not bus.transport.connected:
            return  # nobody would hear it; the lease ends by itself
        await lease.leave()
        for hosted in self._hosted:
            request = Deregister(
                name=hosted.agent.name, subset=hosted.agent.subset, leaving=bus.instance
            )
            with suppress(MeshError):
                await bus.call(DEREGISTER, request, timeout_s=1.0)

    def _check(self, tenant: str) -> None:
        if not self._hosted:
            raise SettingsError("no agent to serve", hint="make one: agent = Agent('my-agent')")
        for hosted in self._hosted:
            raw = hosted.agent.thing(tenant)
            if faults := faults_of(raw):
                raise InvalidDescription.of(label_of(raw), faults)
        names = [(hosted.agent.name, hosted.agent.subset) for hosted in self._hosted]
        if twice := {name for name, subset in names if names.count((name, subset)) > 1}:
            raise SettingsError(f"two agents of one process are called {', '.join(sorted(twice))}")

    def _served(self) -> tuple[Served, ...]:
        return tuple(
            Served(
                name=hosted.agent.name,
                subset=hosted.agent.subset,
                version=hosted.agent.version,
                in_flight=hosted.in_flight,
                concurrency=hosted.agent.concurrency,
            )
            for hosted in self._hosted
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
        """Whether our entry describes a version that no instance serves any more."""
        wanted = FindThings(name=agent.name, subset=agent.subset)
        found = (await bus.call(FIND_THINGS, wanted)).things
        return any(
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

    async def begin(self, bus: Bus) -> None:
        agent = self.agent
        where = (bus.tenant, agent.name, agent.subset)
        self._bus = bus
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

    def _micro_service(self, bus: Bus) -> micro.MicroService:
        agent = self.agent
        where = (bus.tenant, agent.name, agent.subset)
        return micro.MicroService(
            name=synadia.SERVICE,
            id=self._id(bus),
            version=agent.version,
            description=agent.description or f"Agent {agent.name}",
            metadata={
                **synadia.metadata(*where),
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
            ),
            tally=lambda name: bus.tally(
                f"agent.{subjects.escape(agent.name)}.{subjects.escape(agent.subset)}.invoke.{name}"
            ),
        )

    def _id(self, bus: Bus) -> str:
        """A process may serve several agents; each is a service instance of its own."""
        return f"{bus.instance}-{synadia.session(self.agent.name, self.agent.subset)}"

    def heartbeat(self, bus: Bus) -> None:
        where = (bus.tenant, self.agent.name, self.agent.subset)
        payload = json.dumps(self._heartbeat(bus)).encode()
        bus.transport.publish(synadia.subject("hb", *where), payload)

    def _heartbeat(self, bus: Bus) -> synadia.Chunk:
        where = (bus.tenant, self.agent.name, self.agent.subset)
        return synadia.heartbeat(*where, self._id(bus))

    async def _status(self, call: Call) -> Any:
        call.as_json = True  # the request is empty, and the protocol knows nothing else
        return self._heartbeat(self._bus)

    async def _respond(self, call: Call) -> Any:
        """An action invoked on the bus."""
        tokens = call.subject.split(".")
        operation = tokens[5] if len(tokens) > 5 else ""
        if operation != "invoke" or len(tokens) != 7:
            raise NotFound(f"agent {self.agent.name!r} answers to invoke.<capability> only")
        id = subjects.unescape(tokens[6])
        action = self.agent.action(id)
        if action is None:
            can = ", ".join(one.capability.id for one in self.agent.actions)
            raise NotFound(
                f"agent {self.agent.name!r} has no capability {id!r}", hint=f"it has {can}"
            )
        given, circumstances = split(codec.decode_value(call.payload))
        call.notes["conversation"] = circumstances.conversation
        context = Context(call, circumstances)
        return await self._perform(action, given, context)

    async def _perform(self, action: Action, given: dict[str, Any], context: Context) -> Any:
        arguments = action.arguments(given)
        self.in_flight += 1
        try:
            return await action.perform(arguments, context, self.agent)
        except MeshError:
            raise
        except Exception as exc:
            logger.exception(
                "capability %s of agent %s failed", action.capability.id, self.agent.name
            )
            raise AgentFailed(
                f"agent {self.agent.name!r} failed at {action.capability.id!r}: "
                f"{type(exc).__name__}",
                hint="its log has the traceback: `lmos logs`",
            ) from exc
        finally:
            self.in_flight -= 1

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
            context = _PromptContext(call, circumstances, publish, self._bus.tenant)
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


def _input_of(action: Action, prompt: synadia.Prompt) -> dict[str, Any]:
    from lmos_mesh.invocation import input_for

    return input_for(action.capability, prompt.text)


class _PromptContext(Context):
    """A context whose caller takes the Synadia protocol's chunks."""

    def __init__(
        self,
        call: Call,
        circumstances: Circumstances,
        publish: Callable[[str, bytes], None],
        tenant: str,
    ) -> None:
        super().__init__(call, circumstances)
        self._publish_chunk = publish
        self._tenant = tenant

    @property
    def tenant(self) -> str:
        """See `Context.tenant`; these subjects do not begin with it."""
        return self._tenant

    async def say(self, text: str) -> None:
        """See `Context.say`."""
        if text:
            self._said.append(text)
            self._publish_chunk(self._call.reply, synadia.response(text))
