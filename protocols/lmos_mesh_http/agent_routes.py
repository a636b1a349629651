"""One agent at a time: who it is, in each vocabulary, and everything that can be done with it."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    suppress,
)
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import quote, unquote

from fastapi import FastAPI, Path
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lmos_mesh import codec, subjects
from lmos_mesh.description import id_of, thing_of
from lmos_mesh.errors import (
    InvalidMessage,
    MeshError,
    NobodyAnswers,
    NotFound,
    Unavailable,
)
from lmos_mesh.messages import GET_THING, FoundThing, GetThing
from lmos_mesh.projections import agent_card, agent_json, capabilities_json
from lmos_mesh.reply_stream import Frame, ReplyStream
from lmos_mesh.things import DEFAULT_SUBSET, OUR_IDS, SHARED, Thing
from lmos_mesh_http import sse
from lmos_mesh_http.asking import Asker
from lmos_mesh_http.bodies import read_value
from lmos_mesh_http.directory_td import LD, TD
from lmos_mesh_http.enriched import id_faults
from lmos_mesh_http.errors import JSON, fault_of, problem_body
from lmos_mesh_http.event_streams import EventStream, Overheard
from lmos_mesh_http.openapi import add_reading, content, problems
from lmos_mesh_http.parameters import acceptable
from lmos_mesh_http.places import Places
from lmos_mesh_http.replies import AnswerAsItComes, Frames, WholeAnswer
from lmos_mesh_http.tenants import Tenant

ResultT = TypeVar("ResultT")

_TAGS: list[Any] = ["Agents"]
_ROOT = "/agents/"
_WELL_KNOWN = {
    "wot": "Its W3C WoT Thing Description",
    "agent-card.json": "Its A2A agent card",
    "agent.json": "Its LMOS agent document",
    "capabilities.json": "Its LMOS capabilities",
}
_ANY: dict[str, Any] = {"description": "As the schema of its Description says."}


AgentName = Annotated[str, Path(description="The agent's name, percent-encoded.")]
Subset = Annotated[str, Path(description="Its release line, e.g. `stable`.")]
ActionId = Annotated[str, Path(description="The id of one of its capabilities, percent-encoded.")]
PropertyName = Annotated[str, Path(description="The name of one of its properties.")]
EventName = Annotated[str, Path(description="The name of one of its events.")]


class WholeSegments:
    """Keeps a slash inside a name from being taken for the end of it.

    Names under `/agents/` are percent-encoded, and a server hands paths over decoded. Here the
    two characters that decoding would make ambiguous stay encoded; `_name` decodes them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        raw: bytes = scope.get("raw_path") or b""
        if raw.startswith(_ROOT.encode()) and b"%" in raw:
            path = "/".join(
                unquote(one).replace("%", "%25").replace("/", "%2F")
                for one in raw.decode("ascii", "replace").split("/")
            )
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)


class AgentRoutes:
    """Speaks for the agents of the mesh."""

    def __init__(
        self, asker: Asker, places: Places, *, body_limit: int, stall_timeout_s: float
    ) -> None:
        self._asker = asker
        self._places = places
        self._body_limit = body_limit
        self._stall_timeout_s = stall_timeout_s

    def add_to(self, app: FastAPI) -> None:
        """Add all paths."""
        self._add_well_known(app)
        common: dict[str, Any] = {"tags": _TAGS, "response_model": None}
        one = "/agents/{agent}/{subset}"
        app.add_api_route(
            one + "/actions/{action}",
            self.invoke,
            methods=["POST"],
            summary="Have an agent do something",
            responses={
                200: {
                    "description": "What it gives. As events when the request accepts "
                    "`text/event-stream`: `delta` (a piece of it), `status` (its progress), `end` "
                    "(the whole of it) or `error` (a problem document).",
                    "content": {
                        JSON: {"schema": _ANY},
                        sse.MEDIA_TYPE: {"schema": {"type": "string"}},
                    },
                },
                204: {"description": "It is done, and gives nothing."},
            }
            | problems(400, 404, 408, 409, 413, 415, 500, 502, 503, 504, 508),
            openapi_extra={"requestBody": {"content": {JSON: {"schema": _ANY}}}},
            **common,
        )
        add_reading(
            app,
            one + "/properties/{property}",
            self.read,
            summary="Read a property of an agent",
            responses={
                200: {"description": "Its value.", "content": {JSON: {"schema": _ANY}}},
            }
            | problems(400, 404, 500, 503, 504, 508),
            **common,
        )
        app.add_api_route(
            one + "/properties/{property}",
            self.write,
            methods=["PUT"],
            status_code=204,
            summary="Write a property of an agent",
            responses={204: {"description": "It is written."}}
            | problems(400, 404, 408, 409, 413, 415, 500, 503, 504, 508),
            openapi_extra={"requestBody": {"required": True, "content": {JSON: {"schema": _ANY}}}},
            **common,
        )
        add_reading(
            app,
            one + "/events/{event}",
            self.event,
            summary="Listen to an event of an agent",
            responses={
                200: content(sse.MEDIA_TYPE, description="Its data, as events.", type="string")
            }
            | problems(400, 404, 500, 503, 504),
            **common,
        )

    def _add_well_known(self, app: FastAPI) -> None:
        for document, summary in _WELL_KNOWN.items():
            types = (TD, LD, JSON) if document == "wot" else (JSON,)
            short = document.removesuffix(".json").replace("-", "_")
            described: dict[str, Any] = {
                "tags": _TAGS,
                "response_model": None,
                "summary": summary,
                "responses": {200: content(*types, description=f"{summary}.")}
                | problems(400, 404, 406, 500, 503, 504),
            }
            add_reading(
                app,
                "/agents/{agent}/.well-known/" + document,
                self._document(document, types),
                name=f"stable_{short}",
                **described,
            )
            add_reading(
                app,
                "/agents/{agent}/{subset}/.well-known/" + document,
                self._document_of_subset(document, types),
                name=short,
                **described,
            )

    def _document(self, document: str, types: tuple[str, ...]) -> Any:
        async def respond(request: Request, agent: AgentName, tenant: Tenant = None) -> Response:
            return await self._described(request, tenant, agent, DEFAULT_SUBSET, document, types)

        return respond

    def _document_of_subset(self, document: str, types: tuple[str, ...]) -> Any:
        async def respond(
            request: Request, agent: AgentName, subset: Subset, tenant: Tenant = None
        ) -> Response:
            return await self._described(request, tenant, agent, subset, document, types)

        return respond

    async def _described(
        self,
        request: Request,
        tenant: str | None,
        agent: str,
        subset: str,
        document: str,
        types: tuple[str, ...],
    ) -> Response:
        media_type = acceptable(request.headers, types)
        found = await self._get(request, tenant, _name(agent, "agent"), _name(subset, "subset"))
        description = found.description or {}
        if document == "wot":
            return Response(to_json(description), media_type=media_type)
        whose = found.tenant or tenant or self._asker.bus.tenant
        thing = thing_of(description, tenant=whose, trusted=True)
        return Response(
            to_json(self._projected(request, thing, document)),
            headers={"vary": "host"},
            media_type=media_type,
        )

    def _projected(self, request: Request, thing: Thing, document: str) -> dict[str, Any]:
        if document == "capabilities.json":
            return capabilities_json(thing)
        path = f"{quote(thing.name, safe='')}/{quote(thing.subset, safe='')}"
        url = f"{self._places.base(request)}{_ROOT}{path}"
        return agent_card(thing, url) if document == "agent-card.json" else agent_json(thing, url)

    # -- what can be done with it --

    async def invoke(
        self,
        request: Request,
        agent: AgentName,
        subset: Subset,
        action: ActionId,
        tenant: Tenant = None,
    ) -> Response:
        """The body is the action's input; a client that leaves calls the work off."""
        agent, subset, action = _names(agent=agent, subset=subset, action=action)
        where = tenant or self._asker.bus.tenant
        given = await read_value(request, limit=self._body_limit)
        # As msgpack, so that the answer is: a bare number or text in JSON could be mistaken for it.
        payload = codec.encode_value({} if given is None else given)

        @asynccontextmanager
        async def opened() -> AsyncGenerator[Frames]:
            async with AsyncExitStack() as stack:

                async def begun(home: str) -> Frames:
                    subject = subjects.agent_invoke(home, agent, subset, action)
                    asking = self._asker.invoke(request, subject, payload, tenant=where)
                    stream = await stack.enter_async_context(asking)
                    return _Begun(await anext(stream), stream)

                yield await self._at_home(request, where, agent, subset, begun)

        if sse.MEDIA_TYPE in request.headers.get("accept", ""):
            return AnswerAsItComes(
                opened, request, events=ActionEvents(), stall_timeout_s=self._stall_timeout_s
            )
        return WholeAnswer(
            opened, body_of=lambda output: b"" if output is None else to_json(output)
        )

    async def read(
        self,
        request: Request,
        agent: AgentName,
        subset: Subset,
        property: PropertyName,
        tenant: Tenant = None,
    ) -> Response:
        """As any instance has it now."""
        agent, subset, property = _names(agent=agent, subset=subset, property=property)
        value = await self._of_property(request, tenant, agent, subset, property, "read", b"")
        return Response(to_json(value), headers={"cache-control": "no-store"}, media_type=JSON)

    async def write(
        self,
        request: Request,
        agent: AgentName,
        subset: Subset,
        property: PropertyName,
        tenant: Tenant = None,
    ) -> Response:
        """The body is the new value."""
        agent, subset, property = _names(agent=agent, subset=subset, property=property)
        value = await read_value(request, limit=self._body_limit, required=True)
        payload = to_json(value)
        await self._of_property(request, tenant, agent, subset, property, "write", payload)
        return Response(status_code=204)

    async def _of_property(
        self,
        request: Request,
        tenant: str | None,
        agent: str,
        subset: str,
        property: str,
        operation: str,
        payload: bytes,
    ) -> Any:
        where = tenant or self._asker.bus.tenant

        async def asked(home: str) -> Any:
            subject = subjects.agent_property(home, agent, subset, property, operation)
            return await self._asker.ask(request, subject, payload, tenant=where)

        return await self._at_home(request, where, agent, subset, asked)

    async def event(
        self,
        request: Request,
        agent: AgentName,
        subset: Subset,
        event: EventName,
        tenant: Tenant = None,
    ) -> Response:
        """From now on; nobody keeps what was told before."""
        agent, subset, event = _names(agent=agent, subset=subset, event=event)
        found = await self._get(request, tenant, agent, subset)
        known = cast("dict[str, Any]", (found.description or {}).get("events") or {})
        if event not in known:
            raise NotFound(
                f"{agent!r} ({subset}) has no event {event!r}",
                hint=f"it has {', '.join(known)}" if known else "it has none",
            )
        where = found.tenant or tenant or self._asker.bus.tenant
        subject = subjects.event(where, agent, event)
        source = id_of(Thing(name=agent, tenant=where, subset=subset))

        @asynccontextmanager
        async def listening() -> AsyncGenerator[AsyncIterator[bytes]]:
            heard = Overheard()
            subscription = await self._asker.bus.transport.subscribe(subject, heard.on_packet)
            try:
                async with aclosing(_told(heard, source)) as told:
                    yield told
            finally:
                await subscription.unsubscribe()

        def opened() -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
            return listening()

        return EventStream(
            request, opened, closing=self._asker.closing, stall_timeout_s=self._stall_timeout_s
        )

    async def _get(
        self, request: Request, tenant: str | None, agent: str, subset: str
    ) -> FoundThing:
        return await self._asker.call(
            request,
            tenant or self._asker.bus.tenant,
            GET_THING,
            GetThing(name=agent, subset=subset),
        )

    async def _at_home(
        self,
        request: Request,
        tenant: str,
        agent: str,
        subset: str,
        ask: Callable[[str], Awaitable[ResultT]],
    ) -> ResultT:
        """Ask a tenant's own agent, or the one of tenant `shared` that it means.

        Raises:
            NotFound: There is none.
            Unavailable: It is not there just now.
        """
        try:
            return await ask(tenant)
        except NobodyAnswers as error:
            nobody = error
        try:
            found = await self._get(request, tenant, agent, subset)
        except NotFound:
            raise
        except MeshError:
            raise nobody from None
        if found.tenant == SHARED != tenant:
            with suppress(NobodyAnswers):
                return await ask(SHARED)
        raise self._why_nobody(found, agent, subset)

    def _why_nobody(self, found: FoundThing, agent: str, subset: str) -> MeshError:
        """Whether it never answers here, or is not there just now."""
        if found.external or found.origin or found.kind == "thing":
            return NotFound(
                f"{agent!r} does not answer on this mesh",
                hint="the forms of its Description say where it does",
            )
        return Unavailable(f"no instance of {agent!r} ({subset}) is there", hint="ask again")


class _Begun:
    """An answer whose first frame has come: it is known who answers."""

    def __init__(self, first: Frame, rest: ReplyStream) -> None:
        self._first = first
        self._rest = rest

    @property
    def waiting(self) -> int:
        """See `Frames.waiting`."""
        return self._rest.waiting

    async def __aiter__(self) -> AsyncGenerator[Frame]:
        yield self._first
        async for frame in self._rest:
            yield frame


class ActionEvents:
    """What an action gives, as server-sent events: `delta`, `status`, `end`, `error`."""

    def __init__(self) -> None:
        self._seq = 0

    def take(self, frame: Frame) -> bytes:
        """What is told of a frame; nothing for what concerns the bus alone."""
        seq, kind, body = frame
        self._seq = seq
        if kind == "status" and isinstance(body, dict) and body.get("state") == "working":  # pyright: ignore[reportUnknownMemberType]
            return sse.WORKING
        return b"" if kind == "ack" else sse.event(kind, seq, to_json(body))

    def failed(self, error: MeshError) -> bytes:
        """The last event of what does not come to its end."""
        return sse.event("error", self._seq + 1, problem_body(fault_of(error)))


async def _told(heard: Overheard, source: str) -> AsyncGenerator[bytes]:
    async with aclosing(heard.packets()) as packets:
        async for packet in packets:
            told_by = unquote(packet.headers.get("ce-source", ""))
            if told_by.startswith(OUR_IDS) and told_by != source:
                continue  # the same agent in another subset
            try:
                data = from_json(packet.payload) if packet.payload else None
            except ValueError:
                continue  # told by somebody who does not know how
            # Without a name: the path says it, and clients of the Web of Things wait for those.
            yield sse.data(to_json(data))


def _names(**given: str) -> tuple[str, ...]:
    return tuple(_name(value, what) for what, value in given.items())


def _name(segment: str, what: str) -> str:
    name = unquote(segment)
    if reason := id_faults(name):
        raise InvalidMessage(
            f"{what} {reason}", faults=[{"field": f"/{what}", "description": reason}]
        )
    return name
