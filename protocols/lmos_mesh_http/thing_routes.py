"""The directory of Things: the Things API and the Search API of W3C WoT Discovery."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import FastAPI, Path, Query
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lmos_mesh.errors import Conflict, InvalidDescription, InvalidMessage, NotFound
from lmos_mesh.messages import (
    DEREGISTER,
    FIND_THINGS,
    GET_THING,
    REGISTER,
    SEARCH_THINGS,
    Deregister,
    FindThings,
    FoundThing,
    GetThing,
    Register,
    Registered,
    SearchThings,
    ThingsFound,
)
from lmos_mesh.schemas.thing_description import td_faults
from lmos_mesh.service import VERSION
from lmos_mesh_http.asking import Asker
from lmos_mesh_http.bodies import read_object
from lmos_mesh_http.directory_td import LD, MERGE_PATCH, TD, directory_td
from lmos_mesh_http.enriched import DISCOVERY, Draft, draft_of, enriched, id_faults, patched
from lmos_mesh_http.errors import JSON
from lmos_mesh_http.long_json import LongJson
from lmos_mesh_http.negotiation import Conditions, etag
from lmos_mesh_http.openapi import add_reading, content, problems
from lmos_mesh_http.parameters import acceptable
from lmos_mesh_http.places import Places, thing_path
from lmos_mesh_http.tenants import Tenant

_TAGS: list[Any] = ["Directory"]
_TAKEN = (TD, LD, JSON)
_ONE = (TD, LD, JSON)
_MANY = (LD, JSON)

_PAGE = 200
_MOST = 10_000
_TRIES = 6
_AGAIN_S = 0.01

_SORTED_BY = Literal["id", "name", "version", "created", "modified", "load"]
_PATH = "/things/{id:path}"
# Where in a Description is said what the bus is told beside it.
_LIFETIMES = {"/expires": "/registration/expires", "/ttl_s": "/registration/ttl"}

Id = Annotated[
    str, Path(description="The id of the Thing: a URI of up to 512 bytes, percent-encoded.")
]

_CONDITIONS = [
    {
        "name": name,
        "in": "header",
        "required": False,
        "description": said,
        "schema": {"type": "string"},
    }
    for name, said in (
        ("If-Match", "Only if it is at one of these revisions (the `ETag` of a response)."),
        ("If-None-Match", "Only if it is at none of these; `*`: only if there is none."),
    )
]
_WROTE = {
    "ETag": {"description": "The revision that stands now.", "schema": {"type": "string"}},
}
_PLACED = _WROTE | {
    "Location": {"description": "Where it is found.", "schema": {"type": "string"}},
}
_PAGED = {
    "Link": {
        "description": "`rel=next` where more follow; `rel=canonical` with `etag`, which changes "
        "with the registry.",
        "schema": {"type": "string"},
    }
}
_A_TD: dict[str, Any] = {
    "type": "object",
    "description": "A W3C WoT Thing Description 1.1.",
    "required": ["@context", "title", "security", "securityDefinitions"],
}
_A_PATCH: dict[str, Any] = {"type": "object", "description": "A merge patch (RFC 7396)."}
_ARRAY: dict[str, Any] = {"type": "array", "items": _A_TD}
_COLLECTION: dict[str, Any] = {
    "type": "object",
    "required": ["@context", "@type", "total", "members"],
    "properties": {
        "total": {"type": "integer"},
        "members": _ARRAY,
        "next": {"type": "string", "description": "Where more follow."},
    },
}


def _body(*media_types: str, schema: dict[str, Any] = _A_TD) -> dict[str, Any]:
    return {"required": True, "content": {one: {"schema": schema} for one in media_types}}


class ThingRoutes:
    """Answers as a Thing Description Directory."""

    def __init__(
        self, asker: Asker, places: Places, *, body_limit: int, stall_timeout_s: float
    ) -> None:
        self._asker = asker
        self._places = places
        self._body_limit = body_limit
        self._stall_timeout_s = stall_timeout_s

    def add_to(self, app: FastAPI) -> None:
        """Add all paths."""
        common: dict[str, Any] = {"tags": _TAGS, "response_model": None}
        add_reading(
            app,
            "/things",
            self.things,
            summary="Every Thing",
            responses={
                200: content(*_MANY, description="Their Descriptions.", anyOf=[_ARRAY, _COLLECTION])
                | {"headers": _PAGED}
            }
            | problems(400, 406, 500, 503, 504),
            **common,
        )
        app.add_api_route(
            "/things",
            self.create,
            methods=["POST"],
            status_code=201,
            summary="Register a Thing that has no id",
            responses={201: {"description": "It is registered.", "headers": _PLACED}}
            | problems(400, 408, 409, 413, 415, 500, 503, 504),
            openapi_extra={"requestBody": _body(*_TAKEN)},
            **common,
        )
        add_reading(
            app,
            _PATH,
            self.thing,
            summary="One Thing",
            responses={
                200: content(*_ONE, description="Its Description.") | {"headers": _WROTE},
                304: {"description": "It is still at a revision of `If-None-Match`."},
            }
            | problems(400, 404, 406, 500, 503, 504),
            openapi_extra={"parameters": _CONDITIONS[1:]},
            **common,
        )
        app.add_api_route(
            _PATH,
            self.put,
            methods=["PUT"],
            status_code=201,
            summary="Register a Thing, or put another Description in its place",
            responses={
                201: {"description": "It is registered.", "headers": _PLACED},
                204: {"description": "It is replaced.", "headers": _WROTE},
            }
            | problems(400, 408, 409, 412, 413, 415, 500, 503, 504),
            openapi_extra={"requestBody": _body(*_TAKEN), "parameters": _CONDITIONS},
            **common,
        )
        app.add_api_route(
            _PATH,
            self.patch,
            methods=["PATCH"],
            status_code=204,
            summary="Change some of a Description",
            responses={204: {"description": "It is changed.", "headers": _WROTE}}
            | problems(400, 404, 408, 409, 412, 413, 415, 500, 503, 504),
            openapi_extra={
                "requestBody": _body(MERGE_PATCH, schema=_A_PATCH),
                "parameters": _CONDITIONS,
            },
            **common,
        )
        app.add_api_route(
            _PATH,
            self.delete,
            methods=["DELETE"],
            status_code=204,
            summary="Forget a Thing",
            responses={204: {"description": "It is gone."}}
            | problems(400, 404, 409, 412, 500, 503, 504),
            openapi_extra={"parameters": _CONDITIONS},
            **common,
        )
        add_reading(
            app,
            "/search/jsonpath",
            self.jsonpath,
            summary="Search by JSONPath",
            responses={200: content(JSON, description="What it selects.", type="array", items={})}
            | problems(400, 406, 500, 503, 504),
            **common,
        )
        sparql: dict[str, Any] = common | {
            "summary": "Search by SPARQL, which is not possible here",
            "status_code": 501,
            "responses": problems(400, 501),
        }
        add_reading(app, "/search/sparql", self.sparql, **sparql)
        app.add_api_route("/search/sparql", self.post_sparql, methods=["POST"], **sparql)
        add_reading(
            app,
            "/.well-known/wot",
            self.own,
            summary="The directory's own Description",
            responses={200: content(*_ONE, description="Its Description.")} | problems(400, 406),
            **common,
        )

    # -- reading --

    async def own(self, request: Request, tenant: Tenant = None) -> Response:
        """What can be asked of the directory, and where."""
        media_type = acceptable(request.headers, _ONE)
        told = directory_td(
            self._places.base(request),
            tenant=tenant or self._asker.bus.tenant,
            named="tenant" in request.query_params,
            version=VERSION,
        )
        # The same path gives another base under another name of this host.
        return Response(to_json(told), headers={"vary": "host"}, media_type=media_type)

    async def things(
        self,
        request: Request,
        tenant: Tenant = None,
        offset: Annotated[int, Query(ge=0, le=2**31, description="How many to leave out.")] = 0,
        limit: Annotated[
            int | None,
            Query(ge=1, le=2**31, description="How many to give at most; all without it."),
        ] = None,
        format: Annotated[
            Literal["array", "collection"],
            Query(description="Their array, or an object around it."),
        ] = "array",
        sort_by: Annotated[_SORTED_BY, Query(description="What to sort by.")] = "id",
        sort_order: Annotated[
            Literal["ASC", "DESC", "asc", "desc"], Query(description="Which end first.")
        ] = "ASC",
    ) -> Response:
        """Their Descriptions, with when they came and go; in the order of their ids.

        With `limit` a page of them, and the way to the next one in the header `Link`.
        """
        media_type = acceptable(request.headers, _MANY)
        wanted = FindThings(
            live=None,
            descriptions=True,
            sort=sort_by,
            descending=sort_order.upper() == "DESC",
            offset=offset,
            limit=_PAGE if limit is None else min(limit, _MOST),
        )
        found = await self._find(request, tenant, wanted)
        next_offset = found.next if limit is not None else None
        links = self._links(request.query_params, next_offset, found.revision)
        head, tail = b"[", b"]"
        if format == "collection":
            head, tail = self._around(request.query_params, next_offset, found.total)
        headers = {"link": links}
        if limit is not None or found.next is None:
            body = head + _joined(found) + tail
            return Response(body, headers=headers, media_type=media_type)
        return LongJson(
            self._rest(request, tenant, wanted, found, head, tail),
            headers=headers,
            media_type=media_type,
            stall_timeout_s=self._stall_timeout_s,
        )

    async def _rest(
        self,
        request: Request,
        tenant: str | None,
        wanted: FindThings,
        found: ThingsFound,
        head: bytes,
        tail: bytes,
    ) -> AsyncIterator[bytes]:
        """Page after page, so that no more than one is held at a time."""
        yield head + _joined(found)
        while found.next is not None:
            wanted = wanted.model_copy(update={"offset": found.next})
            found = await self._find(request, tenant, wanted)
            if found.things:
                yield b"," + _joined(found)
        yield tail

    async def _find(self, request: Request, tenant: str | None, wanted: FindThings) -> ThingsFound:
        return await self._asker.call(request, self._of(tenant), FIND_THINGS, wanted)

    def _links(self, query: Mapping[str, str], next_offset: int | None, revision: int) -> str:
        """The ways to the next page and to the whole, as the header `Link` has them."""
        whole = {name: query[name] for name in ("tenant",) if name in query}
        links = [f'<{self._collection(whole)}>; rel="canonical"; etag="{revision}"']
        if next_offset is not None:
            links.insert(0, f'<{self._page(query, next_offset)}>; rel="next"')
        return ", ".join(links)

    def _around(
        self, query: Mapping[str, str], next_offset: int | None, total: int
    ) -> tuple[bytes, bytes]:
        told: dict[str, Any] = {
            "@context": DISCOVERY,
            "@type": "ThingCollection",
            "@id": self._collection(_arguments(query)),
            "total": total,
        }
        if next_offset is not None:
            told["next"] = self._page(query, next_offset)
        return to_json(told)[:-1] + b',"members":[', b"]}"

    def _page(self, query: Mapping[str, str], offset: int) -> str:
        return self._collection(_arguments(query) | {"offset": str(offset)})

    def _collection(self, query: Mapping[str, str]) -> str:
        return f"{self._places.prefix}/things" + (f"?{urlencode(query)}" if query else "")

    async def thing(self, request: Request, id: Id, tenant: Tenant = None) -> Response:
        """Its Description, with when it came and goes, and its revision as `ETag`."""
        media_type = acceptable(request.headers, _ONE)
        found = await self._get(request, tenant, _id(id))
        headers = {"etag": etag(found.revision), "vary": "accept"}
        none_match = Conditions.of(request.headers).none_match
        if none_match is not None and none_match.names(found.revision):
            return Response(status_code=304, headers=headers)
        return Response(to_json(enriched(found)), headers=headers, media_type=media_type)

    async def jsonpath(
        self,
        request: Request,
        query: Annotated[
            str, Query(min_length=1, max_length=4096, description="A JSONPath (RFC 9535).")
        ],
        tenant: Tenant = None,
    ) -> Response:
        """What it selects of the array of all Descriptions, e.g. `$[?@.title == 'billing'].id`."""
        media_type = acceptable(request.headers, (JSON,))
        wanted = SearchThings(query=query, limit=_MOST)
        found = await self._asker.call(request, self._of(tenant), SEARCH_THINGS, wanted)
        if found.total > len(found.values):
            raise InvalidMessage(
                f"the query selects {found.total} values, of which {len(found.values)} fit into "
                "one answer",
                hint="select less of each, or fewer: `$[?@.title == 'billing'].id`",
            )
        return Response(to_json(list(found.values)), media_type=media_type)

    async def sparql(self, request: Request, tenant: Tenant = None) -> Response:
        """Always 501."""
        raise HTTPException(501, "this directory has no SPARQL; /search/jsonpath finds by JSONPath")

    async def post_sparql(self, request: Request) -> Response:
        """Always 501."""
        return await self.sparql(request)

    # -- writing --

    async def create(self, request: Request, tenant: Tenant = None) -> Response:
        """It is given a random id. A Thing that has one is sent with PUT to `/things/{id}`."""
        sent = await self._sent(request)
        if "id" in sent:
            said = "must not be there in a POST; PUT it to /things/{id}"
            raise InvalidDescription.of("the description", [{"field": "/id", "description": said}])
        id = f"urn:uuid:{uuid.uuid4()}"
        registered = await self._register(
            request, tenant, id, draft_of({**sent, "id": id}, id=id), revision=0
        )
        where = f"{self._places.prefix}{thing_path(id)}"
        headers = {
            "location": where,
            "content-location": where,
            "etag": etag(registered.revision),
        }
        return Response(status_code=201, headers=headers)

    async def put(self, request: Request, id: Id, tenant: Tenant = None) -> Response:
        """Its `id` must be that of the path. `registration` may set `ttl` or `expires`."""
        id = _id(id)
        sent = await self._sent(request)
        draft = draft_of(sent, id=id)
        conditions = Conditions.of(request.headers)
        for tried in range(1, _TRIES + 1):
            # Told the revision, the registry replaces the Thing of this id and never another one
            # that only has the same name.
            revision = await self._expected(request, tenant, id, conditions)
            try:
                registered = await self._register(
                    request, tenant, id, draft, revision=revision, conditions=conditions
                )
                break
            except Conflict:
                # Most likely somebody else wrote at the same time; the last one wins.
                if tried == _TRIES:
                    raise
                await asyncio.sleep(_AGAIN_S * tried)
        else:
            raise AssertionError("the last try breaks or raises")
        headers = {"etag": etag(registered.revision)}
        if registered.created:
            headers["location"] = f"{self._places.prefix}{thing_path(id)}"
        return Response(status_code=201 if registered.created else 204, headers=headers)

    async def patch(self, request: Request, id: Id, tenant: Tenant = None) -> Response:
        """By a merge patch (RFC 7396). An empty one renews a Thing that has a `ttl`."""
        id = _id(id)
        try:
            change = await read_object(request, limit=self._body_limit, taken=(MERGE_PATCH,))
        except HTTPException as exc:
            raise HTTPException(
                exc.status_code, exc.detail, {"accept-patch": MERGE_PATCH}
            ) from None
        conditions = Conditions.of(request.headers)
        for tried in range(1, _TRIES + 1):
            found = await self._get(request, tenant, id)
            if found.tenant not in ("", self._of(tenant)):
                raise Conflict(
                    f"{id!r} is of tenant {found.tenant!r}, and is changed only there",
                    hint="PUT one of your own, which hides it",
                )
            if not conditions.hold(found.revision):
                raise _failed()
            whole = patched(found, change)
            try:
                registered = await self._register(
                    request,
                    tenant,
                    id,
                    draft_of(whole, id=id),
                    revision=found.revision,
                    conditions=conditions,
                )
            except Conflict:
                # Somebody else has changed it meanwhile; the patch is for what stands now.
                if tried == _TRIES:
                    raise
            else:
                return Response(status_code=204, headers={"etag": etag(registered.revision)})
        raise AssertionError("the last try returns or raises")

    async def delete(self, request: Request, id: Id, tenant: Tenant = None) -> Response:
        """It is found no longer."""
        id = _id(id)
        conditions = Conditions.of(request.headers)
        revision = None
        if conditions:
            # Without it there is nothing to compare: 404 comes before 412.
            revision = (await self._get(request, tenant, id)).revision
            if not conditions.hold(revision):
                raise _failed()
        wanted = Deregister(id=id, revision=revision)
        try:
            gone = await self._asker.call(request, self._of(tenant), DEREGISTER, wanted)
        except Conflict as conflict:
            raise (_failed() if conditions else conflict) from None
        if not gone.gone:
            raise Conflict(f"{id!r} is still served", hint="end the processes that serve it")
        return Response(status_code=204)

    async def _sent(self, request: Request) -> dict[str, Any]:
        return await read_object(request, limit=self._body_limit, taken=_TAKEN)

    async def _register(
        self,
        request: Request,
        tenant: str | None,
        id: str,
        draft: Draft,
        *,
        revision: int,
        conditions: Conditions | None = None,
    ) -> Registered:
        description = draft.description
        if "security" not in description or "securityDefinitions" not in description:
            # The bus fills these in for those who write by hand; here the standard holds.
            raise InvalidDescription.of(
                f"the description of {id!r}", td_faults(description).listed()
            )
        wanted = Register(
            description=description, ttl_s=draft.ttl_s, expires=draft.expires, revision=revision
        )
        try:
            return await self._asker.call(request, self._of(tenant), REGISTER, wanted)
        except InvalidMessage as refused:
            if (field := str(refused.details.get("field"))) not in _LIFETIMES:
                raise
            at = _LIFETIMES[field]
            said = refused.message.removeprefix(f"{field}: ")
            fault = {"field": at, "description": said}
            raise InvalidDescription.of(f"the description of {id!r}", [fault]) from None
        except Conflict as conflict:
            if revision and conflict.details.get("revision") == 0:
                await self._refuse_move(request, tenant, id, revision)
            if conditions:
                raise _failed() from None
            raise

    async def _refuse_move(
        self, request: Request, tenant: str | None, id: str, revision: int
    ) -> None:
        """Refuse what would be entered beside the Thing of this id instead of in its place."""
        with suppress(NotFound):
            if (await self._get(request, tenant, id)).revision == revision:
                raise HTTPException(
                    409,
                    f"{id!r} would become another Thing: under the same id neither the name nor "
                    "the subset of an agent can change, nor whether it is one; DELETE it first",
                )

    async def _expected(
        self, request: Request, tenant: str | None, id: str, conditions: Conditions
    ) -> int:
        """The revision that is to be replaced, 0 for nothing."""
        if (revision := conditions.revision) is not None:
            return revision
        try:
            found = await self._get(request, tenant, id)
            # A shared one is not what is replaced.
            current = found.revision if found.tenant == self._of(tenant) else 0
        except NotFound:
            current = 0
        if not conditions.hold(current):
            raise _failed()
        return current

    async def _get(self, request: Request, tenant: str | None, id: str) -> FoundThing:
        return await self._asker.call(request, self._of(tenant), GET_THING, GetThing(id=id))

    def _of(self, tenant: str | None) -> str:
        return tenant or self._asker.bus.tenant


def _id(id: str) -> str:
    if reason := id_faults(id):
        raise InvalidMessage(
            f"the id in the path {reason}", faults=[{"field": "/id", "description": reason}]
        )
    return id


def _failed() -> HTTPException:
    return HTTPException(
        412, "it is not at the revision that the request names; read it again and repeat the change"
    )


def _joined(found: ThingsFound) -> bytes:
    return b",".join(to_json(enriched(one)) for one in found.things)


def _arguments(query: Mapping[str, str]) -> dict[str, str]:
    """Those arguments of a listing that say what is listed, and how."""
    known = ("tenant", "offset", "limit", "format", "sort_by", "sort_order")
    return {name: query[name] for name in known if name in query}
