"""The Thing Description Directory over HTTP, in front of the real registry."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from lmos_mesh.agent import Agent
from lmos_mesh.bus import Bus
from lmos_mesh.hosting import AgentHost, AgentSettings
from lmos_mesh.messages import GET_THING, REGISTER, GetThing, Register
from lmos_mesh.schemas.thing_description import td_faults
from lmos_mesh.service import Service
from lmos_mesh_http import HttpAdapter, HttpSettings
from lmos_mesh_registry import Registry, RegistrySettings
from tests.conftest import NatsMesh

PATIENCE_S = 20.0
DISCOVERY = "https://www.w3.org/2022/wot/discovery"
TD = {"content-type": "application/td+json"}
PATCH = {"content-type": "application/merge-patch+json"}


def lamp(id: str | None = None, **more: Any) -> dict[str, Any]:
    """A Thing of another vendor."""
    return {
        "@context": ["https://www.w3.org/2022/wot/td/v1.1", {"acme": "urn:acme#"}],
        "title": "Lamp",
        "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
        "security": "nosec_sc",
        "acme:socket": "E27",
        "properties": {
            "on": {"type": "boolean", "forms": [{"href": "http://lamp.example/on"}]},
        },
    } | ({} if id is None else {"id": id} | more if more else {"id": id})


class Directory:
    """A running directory and its client."""

    def __init__(self, adapter: HttpAdapter, client: httpx.AsyncClient, bus: Bus) -> None:
        self.adapter = adapter
        self.client = client
        self.bus = bus
        self.get = client.get
        self.head = client.head
        self.post = client.post
        self.delete = client.delete

    async def put(self, id: str, td: Any = None, **headers: str) -> httpx.Response:
        return await self.client.put(
            path(id),
            content=json.dumps(lamp(id) if td is None else td),
            headers=TD | {name.replace("_", "-"): value for name, value in headers.items()},
        )

    async def patch(self, id: str, change: Any, **headers: str) -> httpx.Response:
        return await self.client.patch(
            path(id),
            content=json.dumps(change),
            headers=PATCH | {name.replace("_", "-"): value for name, value in headers.items()},
        )

    async def thing(self, id: str) -> dict[str, Any]:
        return (await self.get(path(id))).raise_for_status().json()

    async def listed(self, query: str = "") -> list[str]:
        reply = (await self.get(f"/things{query}")).raise_for_status().json()
        return [one["id"] for one in reply]


def path(id: str) -> str:
    return f"/things/{quote(id, safe='')}"


@asynccontextmanager
async def directory(mesh: NatsMesh, *agents: Agent, **settings: Any) -> AsyncGenerator[Directory]:
    """An adapter and a registry while the block lasts, and agents."""
    tenant = mesh.tenant
    adapter = HttpAdapter(HttpSettings(http_port=0, tenant=tenant, **settings))
    services: list[Service] = [
        Registry(RegistrySettings(tenant=tenant, registry_sweep_s=0.2)),
        *([AgentHost(agents, AgentSettings(tenant=tenant))] if agents else []),
        adapter,
    ]
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(mesh.bus()) for _ in services]
        async with asyncio.TaskGroup() as tasks:
            running = [
                await start(tasks, service, bus)
                for service, bus in zip(services, buses, strict=True)
            ]
            try:
                async with httpx.AsyncClient(base_url=adapter.url, timeout=PATIENCE_S) as client:
                    yield Directory(adapter, client, buses[-1])
            finally:
                for task in running:
                    task.cancel()


async def start(tasks: asyncio.TaskGroup, service: Service, bus: Bus) -> asyncio.Task[None]:
    ready = asyncio.Event()
    task = tasks.create_task(service.run(bus, ready.set))
    async with asyncio.timeout(PATIENCE_S):
        await ready.wait()
    return task


# -- coming and going --


async def test_a_thing_is_created_read_replaced_and_deleted(nats_mesh: NatsMesh):
    id = "urn:example:lamp"
    async with directory(nats_mesh) as tdd:
        created = await tdd.put(id)
        read = await tdd.get(path(id))
        replaced = await tdd.put(id, lamp(id) | {"title": "Floor lamp"})
        again = await tdd.thing(id)
        deleted = await tdd.delete(path(id))
        gone = await tdd.get(path(id))
        twice = await tdd.delete(path(id))

    assert created.status_code == 201
    assert created.headers["location"] == "/things/urn:example:lamp"
    assert read.headers["content-type"] == "application/td+json"
    assert read.headers["etag"] == created.headers["etag"] != replaced.headers["etag"]
    told = read.json()
    registration = told.pop("registration")
    assert told.pop("@context") == [*lamp()["@context"], DISCOVERY]
    assert told == {k: v for k, v in lamp(id).items() if k != "@context"}
    assert registration["created"] == registration["modified"]
    assert (replaced.status_code, replaced.content) == (204, b"")
    assert again["title"] == "Floor lamp"
    assert again["registration"]["created"] == registration["created"]
    assert again["registration"]["modified"] > registration["modified"]
    assert (deleted.status_code, gone.status_code, twice.status_code) == (204, 404, 404)
    assert gone.headers["content-type"] == "application/problem+json"
    assert gone.json()["status"] == 404


async def test_a_thing_without_an_id_is_given_one(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        created = await tdd.post("/things", json=lamp())
        read = await tdd.get(created.headers["location"])
        with_id = await tdd.post("/things", json=lamp("urn:example:lamp"))

    assert created.status_code == 201
    assert created.headers["content-location"] == created.headers["location"]
    assert read.json()["id"].startswith("urn:uuid:")
    assert created.headers["location"] == f"/things/{read.json()['id']}"
    assert with_id.status_code == 400
    assert with_id.json()["validationErrors"][0]["field"] == "/id"


@pytest.mark.parametrize(
    "id",
    [
        "http://a.example/b/c?d=e&f#g",
        "urn:x:a%20b/%2F%25",
        "did:web:a.example:b",
        "urn:x:a//b/../c",
    ],
)
async def test_any_id_can_be_in_the_path(nats_mesh: NatsMesh, id: str):
    async with directory(nats_mesh) as tdd:
        created = await tdd.put(id)
        read = await tdd.get(created.headers.get("location", "/nowhere"))
        listed = await tdd.listed()
        deleted = await tdd.delete(path(id))

    assert created.status_code == 201, created.text
    assert read.json()["id"] == id
    assert listed == [id]
    assert deleted.status_code == 204


async def test_every_fault_of_a_description_is_named_with_its_place(nats_mesh: NatsMesh):
    wrong = lamp("urn:x") | {"title": 5, "actions": {"go": {"forms": [{"op": "fly"}]}}}
    async with directory(nats_mesh) as tdd:
        reply = await tdd.put("urn:x", wrong)
        open_ = await tdd.put("urn:x", {k: v for k, v in lamp("urn:x").items() if k != "security"})
        other = await tdd.put("urn:y", lamp("urn:x"))
        anonymous = await tdd.put("urn:y", lamp())
        listed = await tdd.listed()

    assert reply.status_code == 400
    assert reply.headers["content-type"] == "application/problem+json"
    fields = {one["field"] for one in reply.json()["validationErrors"]}
    assert "/title" in fields
    assert any(field.startswith("/actions/go/forms/0") for field in fields)
    assert all(one["description"] for one in reply.json()["validationErrors"])
    # The bus would fill it in; over HTTP the standard holds.
    assert [one["field"] for one in open_.json()["validationErrors"]] == ["/security"]
    assert (other.status_code, anonymous.status_code) == (400, 400)
    assert listed == []


async def test_a_body_in_pieces_without_a_length_is_taken(nats_mesh: NatsMesh):
    async def pieces() -> AsyncIterator[bytes]:
        whole = json.dumps(lamp("urn:x")).encode()
        for at in range(0, len(whole), 50):
            yield whole[at : at + 50]

    async with directory(nats_mesh) as tdd:
        reply = await tdd.client.put("/things/urn:x", content=pieces(), headers=TD)

    assert "content-length" not in reply.request.headers
    assert reply.status_code == 201


@pytest.mark.parametrize("content_type", ["application/json", "application/ld+json; charset=utf-8"])
async def test_other_kinds_of_json_are_taken(nats_mesh: NatsMesh, content_type: str):
    async with directory(nats_mesh) as tdd:
        reply = await tdd.put("urn:x", content_type=content_type)

    assert reply.status_code == 201


async def test_what_http_does_not_allow_is_refused_as_problem(nats_mesh: NatsMesh):
    async with directory(nats_mesh, http_body_limit=2000) as tdd:
        replies = {
            415: await tdd.put("urn:x", content_type="text/turtle"),
            405: await tdd.client.patch("/things", json={}),
            406: await tdd.get("/things", headers={"accept": "text/turtle"}),
            413: await tdd.put("urn:x", lamp("urn:x") | {"description": "x" * 2000}),
            400: await tdd.client.put("/things/urn:x", content=b"{", headers=TD),
            404: await tdd.get("/thing"),
            501: await tdd.get("/search/sparql?query=SELECT"),
        }
        patched = await tdd.client.patch("/things/urn:x", json={})

    for status, reply in replies.items():
        assert reply.status_code == status, reply.text
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["status"] == status
    assert set(replies[405].headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert patched.status_code == 415
    assert patched.headers["accept-patch"] == "application/merge-patch+json"


async def test_the_client_chooses_the_content_type(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        await tdd.put("urn:x")
        one = await tdd.get("/things/urn:x", headers={"accept": "application/json"})
        many = await tdd.get("/things", headers={"accept": "application/json;q=0.9, text/html"})
        default = await tdd.get("/things")

    assert one.headers["content-type"] == "application/json"
    assert many.headers["content-type"] == "application/json"
    assert default.headers["content-type"] == "application/ld+json"


async def test_the_headers_alone_can_be_asked_for(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        await tdd.put("urn:x")
        for where in (
            "/things/urn:x",
            "/things?limit=1",
            "/search/jsonpath?query=$[*].id",
            "/.well-known/wot",
            "/events",
            "/events/thing_created",
        ):
            reply = await tdd.head(where)

            assert (reply.status_code, reply.content) == (200, b""), where
            if "events" not in where:
                got = await tdd.get(where)
                assert reply.headers["content-length"] == str(len(got.content))
                assert reply.headers["content-type"] == got.headers["content-type"]
        unknown = await tdd.head("/things/urn:y")

    assert unknown.status_code == 404


# -- at the same time --


async def test_a_stale_write_is_refused(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        first = (await tdd.put("urn:x", if_none_match="*")).headers["etag"]
        second_creation = await tdd.put("urn:x", if_none_match="*")
        second = await tdd.put("urn:x", lamp("urn:x") | {"title": "B"}, if_match=first)
        stale = [
            await tdd.put("urn:x", lamp("urn:x") | {"title": "C"}, if_match=first),
            await tdd.patch("urn:x", {"title": "C"}, if_match=first),
            await tdd.delete("/things/urn:x", headers={"if-match": first}),
            await tdd.put("urn:y", if_match="*"),
            await tdd.put("urn:y", if_match='"999999"'),
        ]
        any_of = await tdd.put("urn:x", if_match=f'"1", {second.headers["etag"]}')
        title = (await tdd.thing("urn:x"))["title"]
        deleted = await tdd.delete("/things/urn:x", headers={"if-match": any_of.headers["etag"]})

    assert second_creation.status_code == 412
    assert second.status_code == 204
    assert [reply.status_code for reply in stale] == [412] * 5
    assert all(r.headers["content-type"] == "application/problem+json" for r in stale)
    assert any_of.status_code == 204
    assert title == "Lamp"
    assert deleted.status_code == 204


async def test_a_thing_is_never_replaced_by_another_one_of_the_same_name(nats_mesh: NatsMesh):
    async with directory(nats_mesh, billing()) as tdd:
        td = await until_lent(tdd, "billing")
        other = await tdd.put("urn:other", td | {"id": "urn:other"})
        after = await tdd.thing(td["id"])

    assert other.status_code == 409
    assert after["title"] == "billing"


async def test_a_thing_does_not_become_another_one_under_its_id(nats_mesh: NatsMesh):
    async with directory(nats_mesh, billing()) as tdd:
        td = await until_lent(tdd, "billing")
        agent = td | {"id": "urn:x", "title": "till", "mesh:subset": "stable"}
        created = await tdd.put("urn:x", agent)
        renamed = await tdd.patch("urn:x", {"title": "desk"})
        replaced = await tdd.put("urn:x", lamp("urn:x"), if_match=created.headers["etag"])
        after = await tdd.thing("urn:x")

    assert created.status_code == 201
    assert (renamed.status_code, replaced.status_code) == (409, 409)
    assert "DELETE it first" in renamed.json()["detail"]
    assert after["title"] == "till"


async def test_of_writes_at_the_same_time_the_last_one_wins(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        async with asyncio.TaskGroup() as tasks:
            replies = [
                tasks.create_task(tdd.put("urn:x", lamp("urn:x") | {"title": f"L{n}"}))
                for n in range(3)
            ]
        td = await tdd.thing("urn:x")

    assert sorted(reply.result().status_code for reply in replies) == [201, 204, 204]
    assert td["title"] in {"L0", "L1", "L2"}


async def test_what_has_not_changed_is_not_sent_again(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        etag = (await tdd.put("urn:x")).headers["etag"]
        same = await tdd.get("/things/urn:x", headers={"if-none-match": f'W/"1", {etag}'})
        await tdd.put("urn:x", lamp("urn:x") | {"title": "B"})
        other = await tdd.get("/things/urn:x", headers={"if-none-match": etag})

    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == etag
    assert other.status_code == 200


async def test_patches_at_the_same_time_all_count(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        await tdd.put("urn:x")
        async with asyncio.TaskGroup() as tasks:
            replies = [tasks.create_task(tdd.patch("urn:x", {f"acme:n{n}": n})) for n in range(4)]
        td = await tdd.thing("urn:x")

    assert [reply.result().status_code for reply in replies] == [204] * 4
    assert [td[f"acme:n{n}"] for n in range(4)] == [0, 1, 2, 3]


# -- patches and expiry --


async def test_a_patch_changes_what_it_names_and_removes_what_is_null(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        await tdd.put("urn:x")
        patched = await tdd.patch(
            "urn:x",
            {"title": "B", "acme:socket": None, "properties": {"on": {"title": "On?"}}},
        )
        td = await tdd.thing("urn:x")
        invalid = await tdd.patch("urn:x", {"title": None})
        renamed = await tdd.patch("urn:x", {"id": "urn:y"})
        no_object = await tdd.patch("urn:x", ["title"])
        unknown = await tdd.patch("urn:y", {})
        after = await tdd.thing("urn:x")

    assert (patched.status_code, patched.content) == (204, b"")
    assert td["title"] == "B"
    assert "acme:socket" not in td
    assert td["properties"]["on"] == lamp()["properties"]["on"] | {"title": "On?"}
    assert [one["field"] for one in invalid.json()["validationErrors"]] == ["/title"]
    assert [r.status_code for r in (invalid, renamed, no_object, unknown)] == [400, 400, 400, 404]
    assert after == td


async def test_a_thing_with_a_ttl_goes_when_nobody_renews_it(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        await tdd.put("urn:x", lamp("urn:x") | {"registration": {"ttl": 3}})
        registered = (await tdd.thing("urn:x"))["registration"]
        await asyncio.sleep(1.6)
        renewed = await tdd.patch("urn:x", {})
        renewal = (await tdd.thing("urn:x"))["registration"]
        await asyncio.sleep(1.6)
        still_there = await tdd.get("/things/urn:x")
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if (await tdd.get("/things/urn:x")).status_code == 404:
                    break
                await asyncio.sleep(0.05)

    assert registered["ttl"] == 3
    assert renewed.status_code == 204
    assert renewal["expires"] > registered["expires"]
    assert renewal["created"] == registered["created"]
    assert still_there.status_code == 200


async def test_when_a_thing_expires_can_be_set_and_its_times_cannot(nats_mesh: NatsMesh):
    registration = {"created": "2001-01-01T00:00:00Z", "expires": "2101-01-01T00:00:00Z"}
    async with directory(nats_mesh) as tdd:
        await tdd.put("urn:x", lamp("urn:x") | {"registration": registration})
        told = (await tdd.thing("urn:x"))["registration"]
        past = await tdd.put(
            "urn:y", lamp("urn:y") | {"registration": {"expires": "2001-01-01T00:00:00Z"}}
        )
        far = await tdd.put(
            "urn:y", lamp("urn:y") | {"registration": {"expires": "2999-01-01T00:00:00Z"}}
        )
        long = await tdd.put("urn:y", lamp("urn:y") | {"registration": {"ttl": 1e300}})
        gone = await tdd.get("/things/urn:y")

    assert told["expires"].startswith("2101-01-01T00:00:00")
    assert told["created"] > "2026"
    for refused, field in ((past, "expires"), (far, "expires"), (long, "ttl")):
        assert refused.status_code == 400
        (fault,) = refused.json()["validationErrors"]
        assert fault["field"] == f"/registration/{field}"
    assert gone.status_code == 404
    assert gone.json()["title"] == "Thing not found"


# -- all of them --


async def test_pages_lead_from_one_to_the_next_in_the_order_of_ids(nats_mesh: NatsMesh):
    ids = ["urn:A", "urn:Z", "urn:_", "urn:a", "urn:aa"]
    async with directory(nats_mesh) as tdd:
        for id in reversed(ids):
            await tdd.put(id)
        whole = await tdd.listed()
        pages: list[list[str]] = []
        etags: set[str] = set()
        where: str | None = "/things?limit=2"
        while where is not None:
            page = await tdd.get(where)
            pages.append([one["id"] for one in page.json()])
            etags.add(page.headers["link"].rpartition("etag=")[2])
            assert '</things>; rel="canonical"' in page.headers["link"]
            where = page.links.get("next", {}).get("url")
        beyond = await tdd.get("/things?limit=2&offset=9")

    assert whole == ids
    assert pages == [ids[:2], ids[2:4], ids[4:]]
    assert len(etags) == 1
    assert beyond.json() == []


async def test_a_collection_says_how_many_there_are_and_where_more_are(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        for n in range(3):
            await tdd.put(f"urn:{n}")
        page = (await tdd.get("/things?format=collection&limit=2")).json()
        rest = (await tdd.get(page["next"])).json()
        whole = (await tdd.get("/things?format=collection")).json()

    assert page["@context"] == DISCOVERY
    assert page["@type"] == "ThingCollection"
    assert page["total"] == rest["total"] == whole["total"] == 3
    assert [one["id"] for one in page["members"]] == ["urn:0", "urn:1"]
    assert [one["id"] for one in rest["members"]] == ["urn:2"]
    assert "next" not in rest
    assert len(whole["members"]) == 3


async def test_more_than_fits_into_one_reply_is_listed_whole(nats_mesh: NatsMesh):
    long = "x" * 8000
    async with directory(nats_mesh) as tdd:
        for begin in range(0, 300, 50):
            async with asyncio.TaskGroup() as tasks:
                for n in range(begin, begin + 50):
                    td = lamp(f"urn:{n:03}") | {"description": long}
                    tasks.create_task(tdd.put(f"urn:{n:03}", td))
        whole = await tdd.get("/things")
        collection = await tdd.get("/things?format=collection")

    assert len(whole.content) > 2 * 1024 * 1024
    assert [one["id"] for one in whole.json()] == [f"urn:{n:03}" for n in range(300)]
    assert len(collection.json()["members"]) == collection.json()["total"] == 300


async def test_the_order_can_be_chosen(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        for id in ("urn:b", "urn:a", "urn:c"):
            await tdd.put(id)
        newest = await tdd.listed("?sort_by=created&sort_order=DESC")
        backwards = await tdd.listed("?sort_order=DESC")
        page = await tdd.get("/things?sort_by=created&limit=1")
        unknown = await tdd.get("/things?sort_by=colour&limit=0&offset=-1")

    assert newest == ["urn:c", "urn:a", "urn:b"]
    assert backwards == ["urn:c", "urn:b", "urn:a"]
    assert "sort_by=created" in page.links["next"]["url"]
    assert unknown.status_code == 400
    assert {one["field"] for one in unknown.json()["validationErrors"]} == {
        "/sort_by",
        "/limit",
        "/offset",
    }


async def test_a_jsonpath_selects_of_all_descriptions(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        await tdd.put("urn:a")
        await tdd.put("urn:b", lamp("urn:b") | {"title": "Kettle"})
        found = await tdd.get("/search/jsonpath", params={"query": "$[?@.title=='Kettle'].id"})
        broken = await tdd.get("/search/jsonpath", params={"query": "$[?"})
        missing = await tdd.get("/search/jsonpath")

    assert found.headers["content-type"] == "application/json"
    assert found.json() == ["urn:b"]
    assert (broken.status_code, missing.status_code) == (400, 400)
    assert broken.headers["content-type"] == "application/problem+json"


async def test_tenants_do_not_see_each_other(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        other = {"tenant": f"{nats_mesh.tenant} & other"}
        await tdd.client.put("/things/urn:x", json=lamp("urn:x"), params=other)
        await tdd.client.put("/things/urn:y", json=lamp("urn:y"), params=other)
        here = await tdd.listed()
        there = await tdd.get("/things", params={**other, "limit": "1"})
        by_header = await tdd.get("/things", headers={"lmos-tenant": other["tenant"]})
        page = await tdd.get(there.links["next"]["url"])
        own = (await tdd.get("/.well-known/wot", params=other)).json()

    assert here == []
    assert [one["id"] for one in there.json() + page.json()] == ["urn:x", "urn:y"]
    assert len(by_header.json()) == 2
    assert "tenant=" in own["properties"]["things"]["forms"][0]["href"]


# -- the mesh and the directory are one --


def billing() -> Agent:
    agent = Agent("billing", description="Answers questions about bills.")

    @agent.capability(examples=["show my bill"])
    async def view_bill(question: str) -> str:
        """Show a customer's latest bill."""
        return "39.99 €"

    return agent


async def test_agents_of_the_mesh_are_in_the_directory_with_the_adapters_forms(
    nats_mesh: NatsMesh,
):
    async with directory(nats_mesh, billing()) as tdd:
        td = await until_lent(tdd, "billing")
        listed = await tdd.listed()

    assert listed == [td["id"]]
    assert not td_faults(td).listed()
    forms = td["actions"]["view_bill"]["forms"]
    urls = {form["href"]: form for form in forms}
    url = f"{tdd.adapter.url}/agents/billing/stable/actions/view_bill"
    assert urls[url]["htv:methodName"] == "POST"
    assert any(href.startswith("nats:") for href in urls)


async def until_lent(tdd: Directory, name: str) -> dict[str, Any]:
    """The TD of an agent once the adapter's own forms are in it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for td in (await tdd.get("/things")).json():
                if td["title"] == name and f'"{tdd.adapter.url}/' in json.dumps(td):
                    return td
            await asyncio.sleep(0.02)


async def test_a_patch_of_an_agent_keeps_no_form_that_was_lent(nats_mesh: NatsMesh):
    async with directory(nats_mesh, billing()) as tdd:
        td = await until_lent(tdd, "billing")
        patched = await tdd.patch(td["id"], {"acme:colour": "red"})
        sent_back = await tdd.put(td["id"], await tdd.thing(td["id"]))
        read = await tdd.thing(td["id"])

    assert (patched.status_code, sent_back.status_code) == (204, 204)
    assert read["acme:colour"] == "red"
    assert read["actions"] == td["actions"]


async def test_what_comes_over_http_is_on_the_mesh(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        await tdd.put("urn:x")
        found = await tdd.bus.call(GET_THING, GetThing(id="urn:x"))

    assert found.kind == "thing"
    assert found.description == lamp("urn:x")


async def test_the_public_url_is_what_others_are_told(nats_mesh: NatsMesh):
    public = "https://mesh.example/lmos"
    async with directory(nats_mesh, billing(), http_public_url=public) as tdd:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = (await tdd.get("/things")).text
                if public in told:
                    break
                await asyncio.sleep(0.02)
        own = (await tdd.get("/.well-known/wot")).json()
        created = await tdd.put("urn:x")

    assert f"{public}/agents/billing/stable/actions/view_bill" in told
    assert own["base"] == f"{public}/"
    assert created.headers["location"] == f"{public}/things/urn:x"


async def test_the_forms_of_an_adapter_go_when_it_leaves(nats_mesh: NatsMesh):
    async with directory(nats_mesh, billing()) as tdd:
        td = await until_lent(tdd, "billing")
        await tdd.adapter.leave()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await tdd.bus.call(GET_THING, GetThing(id=td["id"]))
                if "http://127" not in json.dumps(found.description):
                    break
                await asyncio.sleep(0.02)

    assert found.live


async def test_the_directory_describes_itself(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        reply = await tdd.get("/.well-known/wot")
        td = reply.json()
        things = td["properties"]["things"]["forms"][0]["href"].partition("{")[0]
        listed = await tdd.get(f"{td['base']}{things}")

    assert reply.headers["content-type"] == "application/td+json"
    assert not td_faults(td).listed()
    assert td["@type"] == "ThingDirectory"
    assert DISCOVERY in td["@context"]
    assert set(td["actions"]) >= {
        "createThing",
        "createAnonymousThing",
        "retrieveThing",
        "updateThing",
        "partiallyUpdateThing",
        "deleteThing",
        "searchJSONPath",
    }
    assert set(td["events"]) >= {"thingCreated", "thingUpdated", "thingDeleted"}
    assert listed.json() == []


# -- events --


@asynccontextmanager
async def listening(
    tdd: Directory, where: str = "/events", **headers: str
) -> AsyncGenerator[AsyncIterator[tuple[int, str, dict[str, Any]]]]:
    """The events from now on: id, name, data."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with tdd.client.stream("GET", where, headers=sent) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield told(response)


async def told(response: httpx.Response) -> AsyncIterator[tuple[int, str, dict[str, Any]]]:
    seen: dict[str, str] = {}
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if key in ("id", "event", "data"):
            seen[key] = value
        elif not line and "data" in seen:
            yield int(seen["id"]), seen["event"], json.loads(seen["data"])
            seen = {}


async def next_of(events: AsyncIterator[Any], names: str = "thing_") -> Any:
    async with asyncio.timeout(PATIENCE_S):
        async for event in events:
            if event[1].startswith(names):
                return event
    raise AssertionError("the events ended")


async def test_events_tell_what_changes(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd, listening(tdd) as events:
        await tdd.put("urn:x")
        await tdd.patch("urn:x", {"title": "B"})
        await tdd.delete("/things/urn:x")
        seen = [await next_of(events) for _ in range(3)]

    assert [name for _, name, _ in seen] == ["thing_created", "thing_updated", "thing_deleted"]
    assert [data for _, _, data in seen] == [{"id": "urn:x"}] * 3
    ids = [id for id, _, _ in seen]
    assert ids == sorted(set(ids))


async def test_with_diff_they_tell_what_has_changed(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd, listening(tdd, "/events?diff=true") as events:
        await tdd.put("urn:x")
        await tdd.patch("urn:x", {"title": "B", "acme:socket": None})
        await tdd.delete("/things/urn:x")
        created, updated, deleted = [(await next_of(events))[2] for _ in range(3)]

    assert created == lamp("urn:x")
    assert updated == {"id": "urn:x", "title": "B", "acme:socket": None}
    assert deleted == {"id": "urn:x"}


async def test_one_type_of_event_can_be_listened_to(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd, listening(tdd, "/events/thing_deleted") as events:
        for id in ("urn:x", "urn:y"):
            await tdd.put(id)
            await tdd.delete(path(id))
        seen = [await next_of(events) for _ in range(2)]
        unknown = await tdd.get("/events/thing_eaten")
        not_a_flag = await tdd.get("/events?diff=perhaps")

    assert [(name, data["id"]) for _, name, data in seen] == [
        ("thing_deleted", "urn:x"),
        ("thing_deleted", "urn:y"),
    ]
    assert (unknown.status_code, not_a_flag.status_code) == (404, 400)


async def test_whoever_comes_back_is_told_what_it_missed(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd:
        async with listening(tdd) as events:
            await tdd.put("urn:a")
            last, _, _ = await next_of(events)
        for id in ("urn:b", "urn:c"):
            await tdd.put(id)
        await asyncio.sleep(0.3)  # so that these are history when it comes back
        async with listening(tdd, last_event_id=str(last)) as events:
            missed = [await next_of(events) for _ in range(2)]
            await tdd.put("urn:d")
            live = await next_of(events)
        nonsense = await tdd.get("/events", headers={"last-event-id": "event_1"})

    assert [data["id"] for _, _, data in missed] == ["urn:b", "urn:c"]
    assert live[2]["id"] == "urn:d"
    assert nonsense.status_code == 400


async def test_instances_are_told_of_too(nats_mesh: NatsMesh):
    async with (
        directory(nats_mesh) as tdd,
        listening(tdd, "/events/instance_joined") as events,
        nats_mesh.bus() as bus,
        asyncio.TaskGroup() as tasks,
    ):
        host = AgentHost([billing()], AgentSettings(tenant=nats_mesh.tenant))
        task = await start(tasks, host, bus)
        joined: dict[str, Any] = {}
        while bus.instance not in joined:
            _, name, data = await next_of(events, "instance_")
            assert name == "instance_joined"
            joined[data["instance"]] = data["things"]
        task.cancel()

    assert [one["name"] for one in joined[bus.instance]] == ["billing"]


async def test_a_silent_line_is_kept_alive(nats_mesh: NatsMesh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmos_mesh_http.event_streams.KEEP_ALIVE_S", 0.05)
    async with directory(nats_mesh) as tdd, tdd.client.stream("GET", "/events") as response:
        said = b""
        async with asyncio.timeout(PATIENCE_S):
            async for part in response.aiter_raw():
                said += part
                if said.count(b": working") >= 2:
                    break

    assert said.startswith(b": open\n\n")


async def test_an_adapter_that_stops_ends_its_events_at_once(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd, listening(tdd) as events:
        began = asyncio.get_running_loop().time()
        await tdd.adapter.leave()
        rest = [event async for event in events if event[1].startswith("thing_")]
        took_s = asyncio.get_running_loop().time() - began

    assert rest == []
    assert took_s < 5.0


async def test_a_client_that_reads_no_events_is_left(
    nats_mesh: NatsMesh, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="lmos_mesh_http")
    async with directory(nats_mesh, http_stall_timeout_s=0.3) as tdd:
        url = urlsplit(tdd.adapter.url)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (url.hostname, url.port))
            await loop.sock_sendall(client, b"GET /events?diff=true HTTP/1.1\r\nhost: x\r\n\r\n")
            await loop.sock_recv(client, 100)
            async with asyncio.timeout(PATIENCE_S):
                n = 0
                while "has read nothing" not in caplog.text:
                    n += 1
                    td = lamp("urn:x") | {
                        "description": f"{n}" + "x" * 8000,
                        "acme:n": f"{n}" + "y" * 180_000,
                    }
                    await tdd.put("urn:x", td)


async def test_a_thing_that_is_written_on_the_bus_is_told_over_http(nats_mesh: NatsMesh):
    async with directory(nats_mesh) as tdd, listening(tdd) as events:
        await tdd.bus.call(REGISTER, Register(description=lamp("urn:x")))
        _, name, data = await next_of(events)

    assert (name, data) == ("thing_created", {"id": "urn:x"})
