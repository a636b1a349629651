"""The paths of the LMOS operator, under both bases of the runtime, which has them as well."""

import asyncio
import logging
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from lmos_mesh.applied import Applied
from lmos_mesh.errors import MeshError, Unavailable
from lmos_mesh.messages import FIND_THINGS, FindThings, FoundThing
from lmos_mesh.resources import DEFAULT_NAMESPACE, ChannelRouting
from lmos_mesh.things import DEFAULT_SUBSET
from lmos_mesh.wiring import Wiring, Wirings
from lmos_mesh_http.asking import Asker
from lmos_mesh_http.errors import JSON, LMOS_BASES, LmosError
from lmos_mesh_http.lmos_operator import (
    applies,
    find_channel,
    list_channels,
    open_channel,
    open_channels,
    open_routing,
    resource_body,
)
from lmos_mesh_http.openapi import content, errors
from lmos_mesh_http.parameters import LONGEST, PATTERN

logger = logging.getLogger(__name__)

_TAGS: list[Any] = ["LMOS operator"]
_RULES: dict[str, Any] = {"min_length": 1, "max_length": LONGEST, "pattern": PATTERN}
_RETRY_S = 1.0

Tenant = Annotated[str, Path(alias="tenantId", **_RULES)]
Channel = Annotated[str, Path(alias="channelId", **_RULES)]
Subset = Annotated[str, Header(alias="x-subset", **_RULES)]
Namespace = Annotated[str | None, Header(alias="x-namespace", **_RULES)]

_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: content(
        JSON,
        description="There is none.",
        type="object",
        properties={"error": {"type": "string"}},
    )
}


class Channels:
    """The resources as this process knows them, once it has read them."""

    def __init__(self, applied: Applied) -> None:
        self.applied = applied
        self._wirings = Wirings(applied.index)
        self._known = False
        applied.on_change(lambda _: self._wirings.forget())

    async def follow(self) -> None:
        """Read what is there, as often as it takes, and follow what changes."""
        while True:
            try:
                await self.applied.follow()
            except MeshError as exc:
                logger.warning("cannot read the resources, trying again: %s", exc)
                await asyncio.sleep(_RETRY_S)
            else:
                self._known = True
                return

    def wiring(self, tenant: str, channel: str, subset: str) -> Wiring | None:
        """What a channel lets through; None for an open one.

        Raises:
            Unavailable: That is not known yet.
        """
        self.check()
        return self._wirings.of(tenant, channel, subset)

    def check(self) -> None:
        """Insist that the resources are known.

        Raises:
            Unavailable: They are not known yet.
        """
        if not self._known:
            raise Unavailable("the resources have not been read yet", hint="ask again")


class LmosOperatorRoutes:
    """Answers on the paths of the LMOS operator."""

    def __init__(self, asker: Asker, channels: Channels) -> None:
        self._asker = asker
        self._channels = channels

    def add_to(self, app: FastAPI) -> None:
        """Add all paths, under both bases; only the first is described."""
        for base in LMOS_BASES:
            described: dict[str, Any] = {
                "tags": _TAGS,
                "include_in_schema": base == LMOS_BASES[0],
                "response_model": None,
                "methods": ["GET"],
            }
            path = base + "/tenants/{tenantId}/channels"
            app.add_api_route(
                path,
                self.channels,
                summary="The channels of a tenant",
                responses={200: content(JSON, description="Channels.", type="array")}
                | errors(LmosError, 400, 500, 503, 504),
                **described,
            )
            for more, endpoint, summary, what in (
                ("", self.channel, "One channel", "A Channel."),
                ("/routing", self.routing, "Who answers on a channel", "A ChannelRouting."),
            ):
                app.add_api_route(
                    path + "/{channelId}" + more,
                    endpoint,
                    summary=summary,
                    responses={200: content(JSON, description=what)}
                    | errors(LmosError, 400, 500, 503, 504)
                    | _NOT_FOUND,
                    **described,
                )

    async def channels(
        self,
        request: Request,
        tenant: Tenant,
        subset: Subset = DEFAULT_SUBSET,
        namespace: Namespace = None,
    ) -> Response:
        """The applied ones; of who applied none, the open ones that are known by name."""
        self._channels.check()
        index = self._channels.applied.index
        if applies(index, tenant) or namespace not in (None, DEFAULT_NAMESPACE):
            found = list_channels(index, tenant, subset, namespace)
            return _told([resource_body(one) for one in found])
        names = open_channels(await self._agents(request, tenant, None, subset))
        return _told([open_channel(tenant, name, subset) for name in names])

    async def channel(
        self,
        request: Request,
        tenant: Tenant,
        channel: Channel,
        subset: Subset = DEFAULT_SUBSET,
        namespace: Namespace = None,
    ) -> Response:
        """As it was applied; an open one requires nothing."""
        self._channels.check()
        index = self._channels.applied.index
        found = find_channel(index, tenant, channel, subset, namespace)
        if found is not None:
            return _told(resource_body(found))
        if self._is_open(tenant, channel, namespace) and await self._agents(
            request, tenant, channel, subset
        ):
            return _told(open_channel(tenant, channel, subset))
        return _missing(f"there is no {_named(tenant, channel, subset, namespace)}")

    async def routing(
        self,
        request: Request,
        tenant: Tenant,
        channel: Channel,
        subset: Subset = DEFAULT_SUBSET,
        namespace: Namespace = None,
    ) -> Response:
        """What the channel was resolved to; of an open one, whoever is live and serves it."""
        self._channels.check()
        index = self._channels.applied.index
        named = _named(tenant, channel, subset, namespace)
        found = find_channel(index, tenant, channel, subset, namespace)
        if found is not None:
            of = found.metadata
            routing = index.get(ChannelRouting, of.namespace, of.name)
            if routing is not None:
                return _told(resource_body(routing))
            said = found.status.message if found.status is not None else ""
            return _missing(f"{named} has never been resolved{f': {said}' if said else ''}")
        if self._is_open(tenant, channel, namespace):
            agents = await self._agents(request, tenant, channel, subset)
            if agents:
                return _told(open_routing(tenant, channel, subset, agents))
        return _missing(f"there is no {named}, and so nobody who answers there")

    def _is_open(self, tenant: str, channel: str, namespace: str | None) -> bool:
        closed = self._channels.applied.closed(tenant, channel)
        return not closed and namespace in (None, DEFAULT_NAMESPACE)

    async def _agents(
        self, request: Request, tenant: str, channel: str | None, subset: str
    ) -> tuple[FoundThing, ...]:
        question = FindThings(kind="agent", channel=channel, subset=subset)
        return (await self._asker.call(request, tenant, FIND_THINGS, question)).things


def _named(tenant: str, channel: str, subset: str, namespace: str | None) -> str:
    where = f" in namespace {namespace!r}" if namespace is not None else ""
    return f"channel {channel!r} ({subset}) of tenant {tenant!r}{where}"


def _told(value: Any) -> Response:
    return Response(to_json(value), media_type=JSON)


def _missing(why: str) -> Response:
    """As the runtime of LMOS says it; its operator says nothing at all."""
    return Response(to_json({"error": why}), status_code=404, media_type=JSON)
