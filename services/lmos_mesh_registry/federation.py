"""Other meshes' Things, mirrored from their directories for as long as these answer.

A mirror is read-only. What is entered expires by itself, and is renewed while the other mesh
answers; nobody has to notice that it is gone. One replica at a time does this for each mesh.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urljoin, urlsplit

from pydantic import ValidationError

from lmos_mesh.bus import Bus
from lmos_mesh.errors import (
    Conflict,
    InvalidDescription,
    MeshError,
    NotFound,
    SettingsError,
    TooLarge,
    Unavailable,
)
from lmos_mesh.membership import Membership
from lmos_mesh.messages import PeerState
from lmos_mesh.things import ThingKey
from lmos_mesh.transport import Bucket
from lmos_mesh_registry.entries import Entries
from lmos_mesh_registry.mirroring import is_called, mirrored, origin_of
from lmos_mesh_registry.registering import Lifetime

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

DUTIES = Bucket(name="lmos_duties", in_memory=True, expiring=True, tokens=2)
"""Who does what only one replica should."""

_DUTY_S = 6
_PAGE = 200
_PAGE_BYTES = 32 * 1024 * 1024
_THING_BYTES = 1024 * 1024
_LINE_BYTES = 2 * 1024 * 1024
_MOST_THINGS = 10_000
_TIMEOUT_S = 5.0
# Its server says every 15 s that the stream lives.
_SILENT_S = 40.0
_GATHER_S = 0.05
_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another mesh.

    Attributes:
        url: Of its HTTP directory, without a slash at the end.
        origin: What it is called here.
    """

    url: str
    origin: str


def peers_in(setting: str, *, own: str) -> list[Peer]:
    """The meshes that a setting names: URLs, or `name=URL`, separated by commas.

    Raises:
        SettingsError: One is no URL of HTTP, or is named like another one or ourselves.
    """
    found: list[Peer] = []
    for one in (part.strip() for part in setting.split(",")):
        if not one:
            continue
        name, separator, url = one.partition("=")
        if not separator or "/" in name:
            name, url = "", one
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(
                f"LMOS_REGISTRY_PEERS: {one!r} is not the URL of a mesh's directory",
                hint="write http://HOST:8420, or NAME=http://HOST:8420; commas between several",
            )
        peer = Peer(url=url.rstrip("/"), origin=name.strip() or origin_of(url))
        if peer.origin == own or any(peer.origin == other.origin for other in found):
            raise SettingsError(
                f"LMOS_REGISTRY_PEERS: two meshes are called {peer.origin!r}",
                hint="name them apart: NAME=http://HOST:8420; LMOS_REGISTRY_MESH is our own name",
            )
        found.append(peer)
    return found


@dataclass(frozen=True, slots=True)
class _Read:
    """A Thing of theirs, whether its id was one of ours, and what was made of it."""

    thing: Mapping[str, Any]
    ours: bool
    entry: tuple[ThingKey, dict[str, Any]] | None


def state_key(tenant: str, peer: Peer) -> str:
    """Where the replica that mirrors a mesh writes how that is, for the others to tell."""
    return f"peer.{_digest(tenant, peer)}"


def _digest(tenant: str, peer: Peer) -> str:
    return hashlib.sha256(f"{tenant} {peer.url}".encode()).hexdigest()[:32]


class Mirror:
    """Keeps one other mesh's Things among ours."""

    def __init__(
        self,
        bus: Bus,
        membership: Membership,
        entries: Entries,
        peer: Peer,
        *,
        tenant: str,
        stale_s: float,
    ) -> None:
        self._bus = bus
        self._membership = membership
        self._entries = entries
        self._peer = peer
        self._tenant = tenant
        self._stale_s = stale_s
        self._duties = bus.transport.key_value(DUTIES)
        digest = _digest(tenant, peer)
        self._duty = f"mirror.{digest}"
        self._state_key = state_key(tenant, peer)
        self._heard_at = 0.0
        self._things: dict[str, Mapping[str, Any]] = {}
        self._changed: asyncio.Queue[str] = asyncio.Queue(_AT_ONCE)
        self._all_changed = True
        self._read: dict[str, _Read] = {}
        self._refused: dict[str, str] = {}
        self._answers: bool | None = None

    async def run(self) -> None:
        """Mirror as long as the bus lives, whenever no other replica does."""
        while True:
            if not await self._on_duty():
                await asyncio.sleep(_DUTY_S / 2)
                continue
            try:
                async with _client() as client, asyncio.TaskGroup() as tasks:
                    listening = tasks.create_task(self._listen(client))
                    await self._follow(client)
                    listening.cancel()
            except* MeshError as group:
                self._say(str(group.exceptions[0]))
                await asyncio.sleep(1.0)

    async def _on_duty(self) -> bool:
        """Whether this replica is the one that does it, for a few seconds more."""
        mine = self._bus.instance.encode()
        try:
            held = await self._duties.get(self._duty)
            if held is not None and held.value != mine:
                return False
            await self._duties.put(
                self._duty, mine, expected=held.revision if held else 0, ttl_s=_DUTY_S
            )
        except MeshError:
            return False
        return True

    async def _follow(self, client: "httpx.AsyncClient") -> None:
        """Enter what is there and what changes, and renew it, until another replica does so."""
        loop = asyncio.get_running_loop()
        self._all_changed = True
        renewed = read = float("-inf")
        while await self._on_duty():
            now = loop.time()
            try:
                if self._all_changed or now - read >= self._stale_s:
                    await self._read_all(client)
                    read = renewed = now
                else:
                    renew = now - renewed >= self._stale_s / 3
                    if renew:
                        await _get(client, f"{self._peer.url}/things?limit=1", _PAGE_BYTES)
                        renewed = now
                    await self._read_changed(client)
                    await self._enter(renew=renew)
                    if renew:
                        await self._write_state("")
            except MeshError as exc:
                self._all_changed = True  # whatever it was about, it is looked at again
                self._say(str(exc))
                await self._write_state(str(exc))
                await asyncio.sleep(min(2.0, self._stale_s / 6))
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_DUTY_S / 3, self._stale_s / 6)):
                    await self._wait_changed()

    # -- what the other mesh has --

    async def _read_all(self, client: "httpx.AsyncClient") -> None:
        self._all_changed = False
        while not self._changed.empty():
            self._changed.get_nowait()
        things: dict[str, Mapping[str, Any]] = {}
        url: str | None = f"{self._peer.url}/things?offset=0&limit={_PAGE}"
        seen: set[str] = set()
        while url is not None and url not in seen:
            seen.add(url)
            page, following = await _get(client, url, _PAGE_BYTES)
            if not isinstance(page, list):
                raise Unavailable(f"{url} gives no array of Things")
            for one in cast("list[Any]", page):
                self._take(things, one)
            if len(things) > _MOST_THINGS:
                raise TooLarge(f"mesh {self._peer.origin!r} has more than {_MOST_THINGS} Things")
            url = _same_host(url, following)
        # What is the same is not looked at again.
        for id, thing in things.items():
            if self._things.get(id) == thing:
                things[id] = self._things[id]
        self._things = things
        self._refused = {id: why for id, why in self._refused.items() if id in things}
        await self._enter(renew=True)
        self._say("")
        await self._write_state("")

    def _take(self, things: dict[str, Mapping[str, Any]], one: Any) -> None:
        if not isinstance(one, dict):
            return
        thing = cast("dict[str, Any]", one)
        if isinstance(id := thing.get("id"), str):
            things[id] = thing

    async def _wait_changed(self) -> None:
        id = await self._changed.get()
        await asyncio.sleep(_GATHER_S)
        with suppress(asyncio.QueueFull):
            self._changed.put_nowait(id)
            return
        self._all_changed = True

    async def _read_changed(self, client: "httpx.AsyncClient") -> None:
        while not self._changed.empty() and not self._all_changed:
            id = self._changed.get_nowait()
            url = f"{self._peer.url}/things/{quote(id, safe='')}"
            try:
                thing, _ = await _get(client, url, _THING_BYTES)
            except NotFound:
                self._things.pop(id, None)
            else:
                self._take(self._things, thing)

    async def _listen(self, client: "httpx.AsyncClient") -> None:
        """Note which of its Things change. Without its events, all are read now and then."""
        last = ""
        while True:
            try:
                async for event, data in _events(
                    client, f"{self._peer.url}/events?diff=true", last
                ):
                    last = event or last
                    self._note(data)
            except MeshError as exc:
                # Of a mesh that is lost this has been said.
                if self._answers is not False:
                    logger.info("mesh %s: %s", self._peer.origin, exc)
            await asyncio.sleep(2.0)
            self._all_changed = True  # what changed meanwhile went unheard

    def _note(self, data: str) -> None:
        try:
            told = json.loads(data)
            ids = [told["id"]] if "id" in told else self._served(told.get("things", ()))
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
            return
        for id in ids:
            if not isinstance(id, str):
                continue
            try:
                self._changed.put_nowait(id)
            except asyncio.QueueFull:
                self._all_changed = True

    def _served(self, told: Iterable[Mapping[str, Any]]) -> list[str]:
        """The ids of what an instance serves that has joined or ended there."""
        names = [(str(one["name"]), str(one["subset"])) for one in told]
        return [
            id
            for id, thing in self._things.items()
            if any(is_called(thing, *name) for name in names)
        ]

    # -- what it is here --

    async def _enter(self, *, renew: bool) -> None:
        """Make our entries of that mesh what they should be."""
        wanted = await self._wanted()
        there = {
            one.key: one
            for one in self._membership.in_tenant(self._tenant)
            if one.thing.origin == self._peer.origin
        }
        for key in there.keys() - wanted.keys():
            await self._remove(key)
        for key, description in wanted.items():
            held = there.get(key)
            await asyncio.sleep(0)
            if renew or held is None or held.description != description:
                await self._put(key, description)

    async def _wanted(self) -> dict[ThingKey, dict[str, Any]]:
        found: dict[ThingKey, dict[str, Any]] = {}
        read: dict[str, _Read] = {}
        for id, thing in sorted(self._things.items()):
            known = self._read.get(id)
            ours = self._is_ours(id)
            if known is None or known.thing is not thing or known.ours != ours:
                known = _Read(thing, ours, self._mirrored(id, thing))
                await asyncio.sleep(0)  # each takes a millisecond, and there may be thousands
            read[id] = known
            if known.entry is not None:
                found.setdefault(*known.entry)
        self._read = read
        return found

    def _mirrored(
        self, id: str, thing: Mapping[str, Any]
    ) -> tuple[ThingKey, dict[str, Any]] | None:
        try:
            return mirrored(
                thing, origin=self._peer.origin, tenant=self._tenant, taken=self._is_ours
            )
        except InvalidDescription as exc:
            if self._refused.get(id) != str(exc):
                logger.warning("not mirrored from mesh %s: %s", self._peer.origin, exc)
            self._refused[id] = str(exc)
            return None

    def _is_ours(self, id: str) -> bool:
        found = self._membership.looked_up(self._tenant, id=id)
        return any(
            one.key.tenant == self._tenant and one.thing.origin != self._peer.origin
            for one in found
        )

    async def _put(self, key: ThingKey, description: Mapping[str, Any]) -> None:
        held = await self._entries.get(key)
        if held is not None and held.description.get("mesh:origin") != self._peer.origin:
            return  # one of ours is called so
        life = Lifetime(ttl=self._stale_s, ends=self._entries.now() + self._stale_s)
        with suppress(Conflict):  # whoever was faster has it right, or is corrected next time
            await self._entries.put(key, description, held, life)

    async def _remove(self, key: ThingKey) -> None:
        held = await self._entries.get(key)
        if held is not None and held.description.get("mesh:origin") == self._peer.origin:
            with suppress(Conflict):
                await self._entries.remove(key, held.revision)

    async def _write_state(self, fault: str) -> None:
        """Note how it is, for whoever asks any replica."""
        if not fault:
            self._heard_at = self._entries.now()
        state = PeerState(
            origin=self._peer.origin,
            url=without_secrets(self._peer.url),
            answers=not fault,
            heard_at=self._heard_at,
            things=len(self._things),
            refused=len(self._refused),
            fault=fault[:500],
        )
        with suppress(MeshError):  # it only tells what is so
            await self._duties.put(self._state_key, state.model_dump_json().encode())

    def _say(self, fault: str) -> None:
        """Log it when the other mesh is lost, and when it is back."""
        if self._answers is (not fault):
            return
        self._answers = not fault
        if fault:
            logger.warning("mesh %s does not answer: %s", self._peer.origin, fault)
        else:
            count = len(self._things)
            logger.info("mirroring mesh %s: it has %d Things", self._peer.origin, count)


@asynccontextmanager
async def _client() -> "AsyncGenerator[httpx.AsyncClient]":
    try:
        import httpx
    except ImportError:
        raise SettingsError(
            "other meshes cannot be mirrored: httpx is missing",
            hint="pip install 'lmos-mesh[registry]'",
        ) from None
    limits = httpx.Limits(max_connections=4, max_keepalive_connections=2)
    async with httpx.AsyncClient(
        timeout=_TIMEOUT_S, limits=limits, follow_redirects=False, trust_env=False
    ) as client:
        yield client


async def _get(client: "httpx.AsyncClient", url: str, most: int) -> tuple[Any, str]:
    """What is at an address as JSON, and where the next page is.

    Raises:
        NotFound: There is nothing.
        TooLarge: It is longer than `most`.
        Unavailable: It cannot be had, or is no JSON.
    """
    import httpx

    body = bytearray()
    try:
        async with (
            asyncio.timeout(4 * _TIMEOUT_S),
            client.stream(
                "GET", url, headers={"accept": "application/json, */*;q=0.1"}
            ) as response,
        ):
            if response.status_code == 404:
                raise NotFound(f"there is nothing at {url}")
            if response.status_code != 200:
                raise Unavailable(f"{url} answers {response.status_code}")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > most:
                    raise TooLarge(f"{url} gives more than {most} bytes", limit=most)
            following = response.links.get("next", {}).get("url", "")
        return json.loads(body), following
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as exc:
        said = str(exc) or type(exc).__name__
        raise Unavailable(f"{url} cannot be read: {said}") from exc
    except (ValueError, RecursionError) as exc:
        raise Unavailable(f"{url} gives no JSON: {exc}") from exc


async def _events(
    client: "httpx.AsyncClient", url: str, last: str
) -> AsyncGenerator[tuple[str, str]]:
    """(id, data) of server-sent events as they come.

    Raises:
        Unavailable: There are none, or no more.
    """
    import httpx

    headers = {"accept": "text/event-stream", **({"last-event-id": last} if last else {})}
    timeout = httpx.Timeout(_TIMEOUT_S, read=_SILENT_S)
    try:
        async with client.stream("GET", url, headers=headers, timeout=timeout) as response:
            if response.status_code != 200:
                raise Unavailable(f"{url} answers {response.status_code}")
            id, data = "", list[str]()
            async for line in _lines(response.aiter_text()):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if name == "id":
                    id = value
                elif name == "data":
                    data.append(value)
                elif not line and data:
                    yield id, "\n".join(data)
                    data = []
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise Unavailable(f"{url} broke off: {str(exc) or type(exc).__name__}") from exc


async def _lines(chunks: Any) -> AsyncGenerator[str]:
    begun = ""
    async for chunk in chunks:
        *whole, begun = (begun + chunk).split("\n")
        for line in whole:
            yield line.removesuffix("\r")
        if len(begun) > _LINE_BYTES:
            raise Unavailable("an event is too long")


def _same_host(url: str, following: str) -> str | None:
    """The next page, if there is one, and it is no other server's."""
    if not following:
        return None
    absolute = urljoin(url, following)
    return absolute if urlsplit(absolute).netloc == urlsplit(url).netloc else None


async def states(bus: Bus, peers: Iterable[Peer], *, tenant: str) -> tuple[PeerState, ...]:
    """How each of these meshes is, as the replica that mirrors it has noted."""
    noted = bus.transport.key_value(DUTIES)
    found: list[PeerState] = []
    for peer in peers:
        state = PeerState(
            origin=peer.origin,
            url=without_secrets(peer.url),
            fault="no replica has asked it yet",
        )
        entry = await noted.get(state_key(tenant, peer))
        with suppress(ValidationError):
            state = PeerState.model_validate_json(entry.value) if entry is not None else state
        found.append(state)
    return tuple(found)


def without_secrets(url: str) -> str:
    """A URL without a user and a password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def start(
    bus: Bus,
    membership: Membership,
    entries: Entries,
    peers: Iterable[Peer],
    *,
    tenant: str,
    stale_s: float,
) -> None:
    """Mirror these meshes as long as the bus lives."""
    for peer in peers:
        mirror = Mirror(bus, membership, entries, peer, tenant=tenant, stale_s=stale_s)
        bus.spawn(mirror.run(), name=f"mirror {peer.origin}")
