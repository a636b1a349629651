"""What changes in the directory, as server-sent events: the Events API of W3C WoT Discovery."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from lmos_mesh.errors import InvalidMessage, NotFound, Overloaded
from lmos_mesh.events import NAMES, OF_REGISTRY, THING_CREATED, THING_UPDATED, CloudEvent
from lmos_mesh_http import sse
from lmos_mesh_http.asking import Asker
from lmos_mesh_http.event_streams import EventStream
from lmos_mesh_http.openapi import add_reading, content, problems
from lmos_mesh_http.shared_events import Event, SharedEvents
from lmos_mesh_http.tenants import Tenant

_TAGS: list[Any] = ["Directory"]
_TYPES = {name: type for type, name in sorted(NAMES.items()) if type in OF_REGISTRY}
_LARGEST = 2**53

_TOLD = content(
    sse.MEDIA_TYPE,
    description=f"Events called {', '.join(f'`{name}`' for name in _TYPES)}. Those of Things have "
    "at least the `id` of the Thing, those of instances name the instance and what it serves.",
    type="string",
)

Diff = Annotated[
    bool,
    Query(
        description="With the whole Description of what was created, and of what was updated the "
        "members that changed, as a merge patch (RFC 7396)."
    ),
]
LastEvent = Annotated[
    str | None,
    Header(
        alias="last-event-id",
        max_length=64,
        description="The `id` of the last event that came: those since then come first.",
    ),
]


class EventRoutes:
    """Tells what changes."""

    def __init__(self, asker: Asker, *, stall_timeout_s: float) -> None:
        self._asker = asker
        self._shared = SharedEvents(asker.bus)
        self._stall_timeout_s = stall_timeout_s

    def add_to(self, app: FastAPI) -> None:
        """Add both paths."""
        described: dict[str, Any] = {
            "tags": _TAGS,
            "response_model": None,
            "responses": {200: _TOLD} | problems(400, 404, 500, 503, 504),
        }
        add_reading(app, "/events", self.all_events, summary="What changes", **described)
        add_reading(
            app, "/events/{type}", self.events, summary="What changes in one way", **described
        )

    async def all_events(
        self,
        request: Request,
        tenant: Tenant = None,
        diff: Diff = False,
        last_event: LastEvent = None,
    ) -> Response:
        """Every event, as it comes to pass."""
        return await self._told(request, tenant, diff, last_event, OF_REGISTRY)

    async def events(
        self,
        request: Request,
        type: str,
        tenant: Tenant = None,
        diff: Diff = False,
        last_event: LastEvent = None,
    ) -> Response:
        """The events of one type."""
        if type not in _TYPES:
            raise NotFound(f"there are no events {type!r}", hint=f"there are {', '.join(_TYPES)}")
        return await self._told(request, tenant, diff, last_event, (_TYPES[type],))

    async def _told(
        self,
        request: Request,
        tenant: str | None,
        diff: bool,
        last_event: str | None,
        types: Collection[str],
    ) -> Response:
        after = _sequence(last_event)
        await self._asker.connected()
        where = tenant or self._asker.bus.tenant

        async def told(events: AsyncIterator[Event]) -> AsyncGenerator[bytes]:
            try:
                async for one in events:
                    if diff not in one.told:
                        one.told[diff] = event_bytes(one.sequence, one.event, diff=diff)
                    yield one.told[diff]
            except Overloaded as left:
                yield sse.comment(str(left))

        @asynccontextmanager
        async def listening() -> AsyncGenerator[AsyncIterator[bytes]]:
            async with (
                self._shared.following(where, after=after, types=types) as events,
                aclosing(told(events)) as said,
            ):
                yield said

        return EventStream(
            request,
            listening,
            closing=self._asker.closing,
            stall_timeout_s=self._stall_timeout_s,
        )


def event_bytes(sequence: int, event: CloudEvent, *, diff: bool) -> bytes:
    """An event of the registry as W3C WoT Discovery tells it."""
    data = event.data
    if event.type == THING_CREATED and diff:
        told = {**data.get("description", {}), "id": data.get("id", event.subject)}
    elif event.type == THING_UPDATED and diff:
        told = {**data.get("diff", {}), "id": data.get("id", event.subject)}
    elif event.type.startswith("lmos.thing."):
        told = {"id": data.get("id", event.subject)}
    else:
        told = data
    return sse.event(NAMES[event.type], sequence, to_json(told))


def _sequence(last_event: str | None) -> int | None:
    if not last_event:
        return None
    if last_event.isascii() and last_event.isdigit() and int(last_event) <= _LARGEST:
        return int(last_event)
    raise InvalidMessage(
        f"Last-Event-ID is {last_event!r}, which no event of ours had",
        faults=[{"field": "/last-event-id", "description": "must be the id of an event"}],
    )
