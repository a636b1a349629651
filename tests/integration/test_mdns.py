"""The mDNS adapter on a network of two machines: the mesh on one, other DNS-SD on the other.

Each machine is a network namespace, and a cable joins them. The other machine's DNS-SD is written
here, by the RFCs, and checked against avahi where that is installed.
"""

import asyncio
import ctypes
import http.server
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.errors import MeshError
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import FIND_THINGS, GET_THING, FindThings, FoundThing, GetThing
from lmos_mesh.nats_config import Binary
from tests.conftest import new_name, session_server
from tests.integration.processes import Deployment, Process, instances_of

GROUP, PORT = "224.0.0.251", 5353
MESH, OTHER = "10.77.0.1", "10.77.0.2"
SERVICE = "_wot._tcp.local"
DIRECTORY = "_directory._sub._wot._tcp.local"
A, PTR, TXT, SRV = 1, 12, 16, 33
NO_GOODBYE = -1

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

GREETER = """
    from lmos_mesh import Agent

    agent = Agent("greeter", description="Greets people.")

    @agent.capability(examples=["hello"])
    async def greet(question: str) -> str:
        return "Hello!"

    agent.run()
"""


# -- two machines --


def _enter(network: int) -> None:
    """Have this thread, and what it starts, live on a network from now on."""
    if _libc.setns(network, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")


def _network() -> int:
    """This thread's network."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _give_up(why: str) -> None:
    """No namespaces: fine on a laptop, not where CI is allowed to have them."""
    if "CI" in os.environ and os.geteuid() == 0:
        pytest.fail(why)
    pytest.skip(why)


@dataclass
class Lan:
    """Two machines and a cable. The thread that made it lives on the mesh's machine.

    Attributes:
        other: The other machine's network.
        more: A process on the other machine keeps it alive.
    """

    mesh: int
    other: int

    @contextmanager
    def at_the_other(self) -> Generator[None]:
        """What is opened or started here belongs to the other machine."""
        _enter(self.other)
        try:
            yield
        finally:
            _enter(self.mesh)


@pytest.fixture(scope="module")
def lan() -> Generator[Lan]:
    """A network of its own for this module: nothing reaches the real one."""
    if shutil.which("ip") is None:
        _give_up("`ip` is not installed (package iproute2), so no network can be made")
    home = _network()
    if _libc.unshare(_CLONE_NEWNET):
        _give_up(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}; be root")
    mesh = _network()
    _libc.unshare(_CLONE_NEWNET)
    other = _network()
    try:
        _run("ip", "link", "set", "lo", "up")
        _enter(mesh)
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
        _run("ip", "link", "set", "lan1", "netns", f"/proc/{os.getpid()}/fd/{other}")
        _wire("lan0", MESH)
        _enter(other)
        _wire("lan1", OTHER)
        _enter(mesh)
        yield Lan(mesh, other)
    finally:
        _enter(home)
        for one in (home, mesh, other):
            os.close(one)


def _wire(name: str, address: str) -> None:
    _run("ip", "addr", "add", f"{address}/24", "dev", name)
    _run("ip", "link", "set", name, "up")
    _run("ip", "route", "add", "default", "dev", name)


# -- DNS-SD by the RFCs, on the other machine --


@dataclass(frozen=True)
class Record:
    """What somebody said, and when."""

    name: str
    kind: int
    ttl: int
    data: Any
    at: float = 0.0


@dataclass
class Advert:
    """A service that the other machine announces."""

    label: str
    port: int
    text: Sequence[bytes] = (b"td=/td",)
    address: str = OTHER
    subtype: bool = False

    def records(self, ttl: int = 120) -> list[Record]:
        """Its records, PTR first."""
        name, host = f"{self.label}.{SERVICE}", f"{self.label.lower()}-host.local"
        records = [Record(SERVICE, PTR, ttl, name)]
        if self.subtype:
            records.append(Record(DIRECTORY, PTR, ttl, name))
        return [
            *records,
            Record(name, SRV, ttl, (self.port, host)),
            Record(name, TXT, ttl, tuple(self.text)),
            Record(host, A, ttl, self.address),
        ]


class Responder:
    """Listens to everything that is said, and says what it was told to say."""

    def __init__(self) -> None:
        self.heard: list[Record] = []
        self.adverts: list[Advert] = []
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind(("", PORT))
        joined = socket.inet_aton(GROUP) + socket.inet_aton(OTHER)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        self._socket.settimeout(0.1)
        self._closed = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Fall silent without a word."""
        self._closed = True
        self._thread.join()
        self._socket.close()

    def ask(self, name: str, kind: int = PTR) -> None:
        """Ask everybody."""
        self._send(0, [(name, kind)], [])

    def announce(self, *adverts: Advert) -> None:
        """Say it, and answer whoever asks from now on."""
        self.adverts += adverts
        for one in adverts:
            self._send(0x8400, [], one.records())

    def say(self, advert: Advert) -> None:
        """Say it once, and never again."""
        self._send(0x8400, [], advert.records())

    def goodbye(self, advert: Advert) -> None:
        """It is gone."""
        self.adverts.remove(advert)
        self._send(0x8400, [], advert.records(ttl=0))

    def wait(self, wanted: Callable[[Record], bool], within_s: float = 15.0) -> Record:
        """The first record said that is wanted; it is asked for again and again."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            with self._changed:
                for one in self.heard:
                    if wanted(one):
                        return one
                self._changed.wait(0.5)
            for name in (SERVICE, DIRECTORY):
                self.ask(name)
        said = "\n".join(str(one) for one in self.heard[-30:])
        raise AssertionError(f"nobody said it within {within_s:g} s:\n{said}")

    async def until(self, wanted: Callable[[Record], bool], within_s: float = 15.0) -> Record:
        """`wait` for coroutines."""
        return await asyncio.to_thread(self.wait, wanted, within_s)

    def text_of(self, name: str) -> dict[str, str]:
        """The last TXT record of a name."""
        pairs = next(one.data for one in reversed(self.heard) if is_(one, TXT, name))
        return dict(pair.decode().split("=", 1) for pair in pairs)

    def _listen(self) -> None:
        while not self._closed:
            try:
                packet, (sender, _) = self._socket.recvfrom(9000)
            except TimeoutError:
                continue
            if sender == OTHER:
                continue
            with suppress(IndexError, struct.error, UnicodeDecodeError):
                questions, records = _parsed(packet)
                if not packet[2] & 0x80:
                    records = []  # a question's records are what it knows or probes for
                with self._changed:
                    self.heard += records
                    self._changed.notify_all()
                self._answer(questions)

    def _answer(self, questions: list[tuple[str, int]]) -> None:
        for advert in list(self.adverts):
            records = advert.records()
            asked = any(
                name.lower() == one.name.lower() and kind in (one.kind, 255)
                for name, kind in questions
                for one in records
            )
            if asked:
                self._send(0x8400, [], records)

    def _send(self, flags: int, questions: list[tuple[str, int]], records: list[Record]) -> None:
        packet = struct.pack("!6H", 0, flags, len(questions), len(records), 0, 0)
        for name, kind in questions:
            packet += _named(name) + struct.pack("!2H", kind, 1)
        for one in records:
            data = _data(one)
            unique = 1 if one.kind == PTR else 0x8001
            packet += _named(one.name) + struct.pack("!2HIH", one.kind, unique, one.ttl, len(data))
            packet += data
        self._socket.sendto(packet, (GROUP, PORT))


def is_(record: Record, kind: int, name: str = "", *, ttl: int = NO_GOODBYE) -> bool:
    """Whether a record is of a kind and a name, and of a time to live; by default no goodbye."""
    alive = record.ttl > 0 if ttl == NO_GOODBYE else record.ttl == ttl
    return record.kind == kind and record.name.lower() == name.lower() and alive


def _named(name: str) -> bytes:
    """A name; a service's own label may have dots in it."""
    head, dot, rest = name.partition(f".{SERVICE}")
    labels = [head, *rest.split("."), *SERVICE.split(".")] if dot else name.split(".")
    parts = [one.encode() for one in labels if one]
    return b"".join(bytes([len(one)]) + one for one in parts) + b"\0"


def _data(record: Record) -> bytes:
    if record.kind == PTR:
        return _named(record.data)
    if record.kind == SRV:
        port, host = record.data
        return struct.pack("!3H", 0, 0, port) + _named(host)
    if record.kind == TXT:
        return b"".join(bytes([len(one)]) + one for one in record.data) or b"\0"
    return socket.inet_aton(record.data)


def _parsed(packet: bytes) -> tuple[list[tuple[str, int]], list[Record]]:
    _, _, asked, *answered = struct.unpack_from("!6H", packet)
    at = 12
    questions: list[tuple[str, int]] = []
    for _ in range(asked):
        name, at = _name_at(packet, at)
        questions.append((name, struct.unpack_from("!H", packet, at)[0]))
        at += 4
    records: list[Record] = []
    for _ in range(sum(answered)):
        name, at = _name_at(packet, at)
        kind, _, ttl, size = struct.unpack_from("!2HIH", packet, at)
        at += 10
        data: Any = packet[at : at + size]
        if kind == PTR:
            data, _ = _name_at(packet, at)
        elif kind == SRV:
            data = (struct.unpack_from("!3H", packet, at)[2], _name_at(packet, at + 6)[0])
        elif kind == TXT:
            data = tuple(_texts(data))
        elif kind == A:
            data = socket.inet_ntoa(data)
        records.append(Record(name, kind, ttl, data, time.monotonic()))
        at += size
    return questions, records


def _texts(data: bytes) -> Iterator[bytes]:
    while data:
        yield data[1 : 1 + data[0]]
        data = data[1 + data[0] :]


def _name_at(packet: bytes, at: int) -> tuple[str, int]:
    labels: list[str] = []
    end = 0
    while size := packet[at]:
        if size >= 0xC0:
            end = end or at + 2
            at = struct.unpack_from("!H", packet, at)[0] & 0x3FFF
            continue
        labels.append(packet[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels), end or at + 1


# -- what the other machine serves --


@dataclass
class Site:
    """A web server whose answers tests write.

    Attributes:
        pages: (status, headers, body) by path; without it 404.
        asked: The paths that were asked for.
    """

    port: int = 0
    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict[str, Any])
    asked: list[str] = field(default_factory=list[str])

    def put(self, path: str, value: Any, **headers: str) -> None:
        """Answer with JSON."""
        self.pages[path] = (200, headers, json.dumps(value).encode())


@contextmanager
def serving(address: str) -> Generator[Site]:
    """A web server on the machine where this is called."""
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            status, headers, body = site.pages.get(self.path, (404, {}, b"none"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lamp(**more: Any) -> dict[str, Any]:
    """The Description of another vendor's thing."""
    return {
        "@context": "https://www.w3.org/2022/wot/td/v1.1",
        "id": "urn:dev:lamp-1",
        "title": "A lamp",
        "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
        "security": "nosec_sc",
        "actions": {"toggle": {"forms": [{"href": "/toggle"}]}},
        "vendor:colour": "warm",
        **more,
    }


@pytest.fixture
def other(lan: Lan) -> Generator[Responder]:
    """DNS-SD on the other machine."""
    with lan.at_the_other():
        responder = Responder()
    try:
        yield responder
    finally:
        for advert in list(responder.adverts):
            responder.goodbye(advert)
        responder.close()


@pytest.fixture
def site(lan: Lan) -> Generator[Site]:
    """A web server on the other machine."""
    with lan.at_the_other():
        served = serving(OTHER)
        site = served.__enter__()
    try:
        yield site
    finally:
        served.__exit__(None, None, None)


# -- the mesh --


@pytest.fixture(scope="module")
def mesh_machine(
    lan: Lan, nats_binary: Binary, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Deployment]:
    """A registry and an HTTP adapter on the mesh's machine."""
    directory = tmp_path_factory.mktemp("mdns")
    with session_server(nats_binary, directory) as url:
        deployment = Deployment(url, directory)
        try:
            deployment.services("registry", "router", "runtime")
            deployment.service("http", LMOS_HTTP_HOST="0.0.0.0")
            yield deployment
            deployment.check_stop()
        finally:
            deployment.stop()


@pytest.fixture
def adapter(mesh_machine: Deployment) -> Generator[Process]:
    """The mDNS adapter, with its usual settings but for how often it looks again."""
    process = mesh_machine.service("mdns", LMOS_MDNS_REFRESH_S="1")
    try:
        yield process
    finally:
        if process.alive:
            process.terminate()
            assert process.wait() == 0, process.log()


async def listed(mesh: Mesh, thing_id: str) -> FoundThing | None:
    """A Thing of the registry, live or not."""
    found = await mesh.bus.call(FIND_THINGS, FindThings(id=thing_id, live=None, descriptions=True))
    return found.things[0] if found.things else None


async def until_listed(mesh: Mesh, thing_id: str, within_s: float = 15.0) -> FoundThing:
    """Wait for it."""
    until = time.monotonic() + within_s
    while (found := await listed(mesh, thing_id)) is None:
        assert time.monotonic() < until, f"{thing_id} is not listed"
        await asyncio.sleep(0.05)
    return found


async def until_gone(mesh: Mesh, thing_id: str, within_s: float = 15.0) -> None:
    """Wait until it is not there."""
    until = time.monotonic() + within_s
    while await listed(mesh, thing_id) is not None:
        assert time.monotonic() < until, f"{thing_id} is still listed"
        await asyncio.sleep(0.05)


# -- what others see of the mesh --


@pytest.mark.usefixtures("adapter")
async def test_the_directory_is_announced_as_the_w3c_says(other: Responder) -> None:
    found = await other.until(lambda one: is_(one, PTR, DIRECTORY))
    name = found.data

    assert name == f"LMOS demo.{SERVICE}"
    await other.until(lambda one: is_(one, PTR, SERVICE) and one.data == name)
    srv = await other.until(lambda one: is_(one, SRV, name))
    text = other.text_of(name)
    assert text["td"] == "/.well-known/wot"
    assert text["type"] == "Directory"
    assert "scheme" not in text
    port, host = srv.data
    assert port == 8420
    await other.until(lambda one: is_(one, A, host) and one.data == MESH)


@pytest.mark.usefixtures("adapter")
async def test_an_agent_is_announced_while_it_lives(
    mesh_machine: Deployment, other: Responder
) -> None:
    name = f"greeter.{SERVICE}"
    agent = await asyncio.to_thread(mesh_machine.agent, GREETER)
    await other.until(lambda one: is_(one, PTR, SERVICE) and one.data == name)

    await other.until(lambda one: is_(one, SRV, name))
    text = other.text_of(name)
    assert text["td"] == "/agents/greeter/stable/.well-known/wot"
    assert text["type"] == "Thing"

    agent.terminate()
    await other.until(lambda one: is_(one, PTR, SERVICE, ttl=0) and one.data == name)
    await agent.ended()


@pytest.mark.usefixtures("adapter")
async def test_what_the_records_say_leads_to_the_description(
    lan: Lan, mesh_machine: Deployment, other: Responder
) -> None:
    name = f"greeter.{SERVICE}"
    agent = await asyncio.to_thread(mesh_machine.agent, GREETER)
    srv = await other.until(lambda one: is_(one, SRV, name))
    port, host = srv.data
    address = (await other.until(lambda one: is_(one, A, host))).data

    with lan.at_the_other():
        connection = socket.create_connection((address, port), timeout=5)
    with connection, connection.makefile("rb") as answer:
        path = other.text_of(name)["td"]
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        status, *_ = answer.read().split(b"\r\n", 1)

    assert b" 200 " in status
    agent.terminate()
    await agent.ended()


async def test_everything_says_goodbye_when_the_adapter_stops(
    mesh_machine: Deployment, other: Responder
) -> None:
    adapter = await asyncio.to_thread(mesh_machine.service, "mdns")
    await other.until(lambda one: is_(one, PTR, DIRECTORY))

    adapter.terminate()

    for name in (SERVICE, DIRECTORY):
        await other.until(lambda one, name=name: is_(one, PTR, name, ttl=0))
    assert await adapter.ended() == 0


async def test_a_name_that_is_taken_is_left_to_its_owner(
    mesh_machine: Deployment, other: Responder
) -> None:
    other.announce(Advert("LMOS demo", 9, text=(b"td=/elsewhere",)))

    adapter = await asyncio.to_thread(mesh_machine.service, "mdns")

    found = await other.until(lambda one: is_(one, PTR, DIRECTORY))
    assert found.data == f"LMOS demo-2.{SERVICE}"
    await adapter.logged("is taken on this network")
    adapter.terminate()
    assert await adapter.ended() == 0


async def test_what_only_this_machine_reaches_is_not_announced(
    mesh_machine: Deployment, other: Responder
) -> None:
    tenant = new_name("inward")
    http_adapter = await asyncio.to_thread(
        mesh_machine.service, "http", LMOS_TENANT=tenant, LMOS_HTTP_PORT="0"
    )
    adapter = await asyncio.to_thread(mesh_machine.service, "mdns", LMOS_TENANT=tenant)

    said = await adapter.logged("nobody else on the network reaches")

    assert "LMOS_HTTP_HOST=0.0.0.0" in said["event"]
    other.ask(DIRECTORY)
    await asyncio.sleep(1.0)
    assert not [one for one in other.heard if one.kind == PTR and tenant in str(one.data)]
    for one in (adapter, http_adapter):
        one.terminate()
        assert await one.ended() == 0


# -- what the mesh sees of others --


@pytest.mark.usefixtures("adapter")
async def test_a_thing_is_listed_until_it_says_goodbye(
    mesh_machine: Deployment, other: Responder, site: Site
) -> None:
    site.put("/td", lamp())
    advert = Advert("Lamp", site.port)
    async with mesh_machine.client() as mesh:
        other.announce(advert)

        found = await until_listed(mesh, "urn:dev:lamp-1")

        assert found.kind == "thing"
        assert found.external
        assert not found.live
        assert found.description is not None
        assert found.description["vendor:colour"] == "warm"
        assert found.description["base"] == f"http://{OTHER}:{site.port}/td"

        other.goodbye(advert)
        await until_gone(mesh, "urn:dev:lamp-1", within_s=5)


@pytest.mark.usefixtures("adapter")
async def test_a_thing_that_falls_silent_is_forgotten_and_comes_back(
    mesh_machine: Deployment, other: Responder, site: Site
) -> None:
    site.put("/td", lamp())
    async with mesh_machine.client() as mesh:
        other.announce(Advert("Silent", site.port))
        await until_listed(mesh, "urn:dev:lamp-1")

        page = site.pages.pop("/td")
        await until_gone(mesh, "urn:dev:lamp-1")

        site.pages["/td"] = page
        await until_listed(mesh, "urn:dev:lamp-1")


@pytest.mark.usefixtures("adapter")
async def test_the_things_of_a_directory_are_read_page_by_page(
    mesh_machine: Deployment, other: Responder, site: Site
) -> None:
    first = [lamp(id=f"urn:dev:paged-{one}") for one in range(3)]
    mirrored = lamp(id="urn:dev:second-hand", **{"mesh:external": True})
    site.put("/.well-known/wot", lamp(id="urn:dev:directory", **{"@type": "ThingDirectory"}))
    site.put("/things?limit=100", [*first, mirrored], link='</things?page=2>; rel="next"')
    site.put("/things?page=2", [lamp(id="urn:dev:paged-3")])
    async with mesh_machine.client() as mesh:
        text = (b"td=/.well-known/wot", b"type=Directory")
        other.announce(Advert("Shelf", site.port, text=text, subtype=True))

        for one in ("directory", *(f"paged-{number}" for number in range(4))):
            await until_listed(mesh, f"urn:dev:{one}")

        assert await listed(mesh, "urn:dev:second-hand") is None

        site.put("/things?page=2", [])
        await until_gone(mesh, "urn:dev:paged-3")
        assert await listed(mesh, "urn:dev:paged-0")


async def test_an_invalid_description_is_refused_once_with_its_faults(
    mesh_machine: Deployment, adapter: Process, other: Responder, site: Site
) -> None:
    wrong = lamp(id="urn:dev:wrong")
    del wrong["title"]
    wrong["actions"] = {"toggle": {"forms": []}}
    site.put("/td", wrong)

    other.announce(Advert("Wrong", site.port))

    said = await adapter.logged("urn:dev:wrong")
    assert "/title" in said["event"] or "title" in said["event"]
    assert "/actions/toggle/forms" in said["event"]
    async with asyncio.timeout(30):
        while len(site.asked) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert len(adapter.entries("urn:dev:wrong")) == 1
    async with mesh_machine.client() as mesh:
        assert await listed(mesh, "urn:dev:wrong") is None


async def test_a_thing_that_claims_an_agents_id_does_not_replace_it(
    mesh_machine: Deployment, adapter: Process, other: Responder, site: Site
) -> None:
    agent = await asyncio.to_thread(mesh_machine.agent, GREETER)
    async with mesh_machine.client() as mesh:
        ours = await mesh.bus.call(GET_THING, GetThing(name="greeter"))
        assert ours.description is not None
        site.put("/td", {**ours.description, "description": "Robs people."})
        other.announce(Advert("Robber", site.port))

        await adapter.logged("has its id or its name")

        still = await mesh.bus.call(GET_THING, GetThing(name="greeter"))
        assert still.description == ours.description
        assert still.live
        assert not still.external
    agent.terminate()
    await agent.ended()


@pytest.mark.usefixtures("adapter")
async def test_an_agent_takes_its_name_back_from_what_was_found(
    mesh_machine: Deployment, other: Responder, site: Site
) -> None:
    first = await asyncio.to_thread(mesh_machine.agent, GREETER)
    async with mesh_machine.client() as mesh:
        ours = await mesh.bus.call(GET_THING, GetThing(name="greeter"))
        assert ours.description is not None
        first.terminate()
        await first.ended()
        site.put("/td", {**ours.description, "description": "Squats."})
        other.announce(Advert("Squatter", site.port))
        squatting = await until_listed(mesh, str(ours.description["id"]))
        assert squatting.external

        second = await asyncio.to_thread(mesh_machine.agent, GREETER)
        await asyncio.sleep(2.5)

        mine = await mesh.bus.call(GET_THING, GetThing(name="greeter"))
        assert not mine.external
        assert mine.live
        assert mine.summary == "Greets people."
        second.terminate()
        await second.ended()


async def test_records_that_lead_elsewhere_are_not_followed(
    lan: Lan, mesh_machine: Deployment, adapter: Process, other: Responder, site: Site
) -> None:
    with serving("127.0.0.1") as inner, lan.at_the_other(), serving(OTHER) as second:
        inner.put("/td", lamp(id="urn:dev:inner"))
        second.put("/td", lamp(id="urn:dev:second"))
        elsewhere = f"http://{OTHER}:{second.port}/td"
        site.pages["/td"] = (302, {"location": elsewhere}, b"")
        site.pages["/big"] = (200, {}, b"[" + b" " * 300_000 + b"]")
        site.pages["/packed"] = (200, {"content_encoding": "gzip"}, b"?" * 100)
        site.pages["/deep"] = (200, {}, b"[" * 100_000)
        other.announce(
            Advert("Loopback", inner.port, address="127.0.0.1"),
            Advert("FarAway", 80, address="192.0.2.1"),
            Advert("Redirect", site.port),
            Advert("WholeUrl", site.port, text=(f"td={elsewhere}".encode(),)),
            Advert("TwoSlashes", site.port, text=(b"td=//10.77.0.2/td",)),
            Advert("Big", site.port, text=(b"td=/big",)),
            Advert("Packed", site.port, text=(b"td=/packed",)),
            Advert("Deep", site.port, text=(b"td=/deep",)),
            Advert("Scheme", site.port, text=(b"td=/td", b"scheme=file")),
            Advert("Binary", site.port, text=(b"td=/\xff\xfe",)),
            Advert("Wordy", site.port, text=tuple(b"k%d=" % one + b"v" * 200 for one in range(8))),
        )

        for name, why in {
            "Loopback": "none of its addresses",
            "FarAway": "none of its addresses",
            "Redirect": "redirects to another host",
            "WholeUrl": "not an absolute path",
            "TwoSlashes": "not an absolute path",
            "Big": "more than",
            "Packed": "packed",
            "Deep": "not JSON",
            "Scheme": "only http and https",
            "Binary": "not UTF-8",
            "Wordy": "TXT record has",
        }.items():
            said = await adapter.logged(f"'{name}.")
            assert why in said["event"], said

        assert not inner.asked
        assert not second.asked
        assert not adapter.complaints()


async def test_a_flood_of_services_is_bounded_and_others_are_found_after_it(
    mesh_machine: Deployment, other: Responder, site: Site
) -> None:
    adapter = await asyncio.to_thread(
        mesh_machine.service, "mdns", LMOS_MDNS_REFRESH_S="1", LMOS_MDNS_SERVICES_MAX="50"
    )
    site.put("/td", lamp())
    flood = [Advert(f"flood-{one}", 9) for one in range(2000)]
    for one in flood:
        other.say(one)

    await adapter.logged("more than 50 services")

    async with mesh_machine.client() as mesh:
        other.announce(Advert("Lamp", site.port))
        await until_listed(mesh, "urn:dev:lamp-1", within_s=20)
    adapter.terminate()
    assert await adapter.ended() == 0


async def test_what_was_found_goes_with_the_adapter_that_found_it(
    mesh_machine: Deployment, other: Responder, site: Site
) -> None:
    site.put("/td", lamp())
    adapter = await asyncio.to_thread(mesh_machine.service, "mdns")
    async with mesh_machine.client() as mesh:
        other.announce(Advert("Lamp", site.port))
        await until_listed(mesh, "urn:dev:lamp-1")

        adapter.terminate()
        assert await adapter.ended() == 0

        with pytest.raises(MeshError):
            await mesh.bus.call(GET_THING, GetThing(id="urn:dev:lamp-1"))


async def test_two_adapters_of_one_mesh_do_not_take_each_other_for_strangers(
    mesh_machine: Deployment, adapter: Process, other: Responder
) -> None:
    second = await asyncio.to_thread(mesh_machine.service, "mdns", LMOS_MDNS_REFRESH_S="1")
    hosts: set[str] = set()

    def is_the_second(one: Record) -> bool:
        # Both may have the same name, if the first was too busy to say that it is taken.
        if one.kind == SRV and one.ttl > 0:
            hosts.add(one.data[1])
        return len(hosts) == 2

    await other.until(is_the_second)
    await asyncio.sleep(2)

    for one in (adapter, second):
        assert not one.entries("found ")
        assert not one.entries("not read")
        assert not one.entries("not taken in")
    second.terminate()
    assert await second.ended() == 0


async def test_what_a_killed_adapter_found_is_taken_over_by_the_next(
    mesh_machine: Deployment, other: Responder, site: Site
) -> None:
    site.put("/td", lamp())
    adapter = await asyncio.to_thread(mesh_machine.service, "mdns", LMOS_MDNS_REFRESH_S="1")
    async with mesh_machine.client() as mesh:
        lit = Advert("Lamp", site.port)
        other.announce(lit)
        await until_listed(mesh, "urn:dev:lamp-1")
        adapter.kill()

        second = await asyncio.to_thread(mesh_machine.service, "mdns", LMOS_MDNS_REFRESH_S="1")
        await second.logged("found urn:dev:lamp-1")

        other.goodbye(lit)
        await until_gone(mesh, "urn:dev:lamp-1", within_s=5)
    second.terminate()
    assert await second.ended() == 0


@pytest.fixture
def north(lan: Lan, nats_binary: Binary, tmp_path: Path) -> Generator[Deployment]:
    """Another mesh, on the other machine."""
    with lan.at_the_other(), session_server(nats_binary, tmp_path) as url:
        deployment = Deployment(url, tmp_path, env={"LMOS_TENANT": "north"})
        try:
            deployment.services("registry")
            deployment.service("http", LMOS_HTTP_HOST="0.0.0.0")
            _enter(lan.mesh)
            yield deployment
            deployment.check_stop()
        finally:
            _enter(lan.other)
            deployment.stop()


async def test_two_meshes_list_each_others_agents_and_nothing_goes_round(
    lan: Lan, mesh_machine: Deployment, adapter: Process, north: Deployment
) -> None:
    # Each in the tenant that it entered.
    theirs, ours = "urn:lmos-mesh:demo:pilot:stable", "urn:lmos-mesh:north:greeter:stable"
    greeter = await asyncio.to_thread(mesh_machine.agent, GREETER)
    async with AsyncExitStack() as clients:
        mesh = await clients.enter_async_context(mesh_machine.client())
        with lan.at_the_other():
            pilot = north.agent(GREETER.replace("greeter", "pilot"), name="pilot")
            second = north.service("mdns", LMOS_MDNS_REFRESH_S="1")
            other_mesh = await clients.enter_async_context(north.client("north"))

        found = await until_listed(mesh, theirs)
        assert (found.name, found.external, found.live) == ("pilot", True, None)
        assert (await until_listed(other_mesh, ours)).external
        await asyncio.sleep(2.5)
        for one in (pilot, greeter):
            one.terminate()
        await until_gone(mesh, theirs)
        await until_gone(other_mesh, ours)
        # Long enough for either to have heard of it from the other once more.
        await asyncio.sleep(2.5)

        assert await listed(mesh, theirs) is None
        assert await listed(other_mesh, ours) is None
        for one in (adapter, second):
            assert not one.entries("not taken in"), one.log()


async def test_on_a_trusted_network_a_found_agent_is_called_and_yields_to_ours(
    lan: Lan, mesh_machine: Deployment, north: Deployment
) -> None:
    adapter = await asyncio.to_thread(
        mesh_machine.service, "mdns", LMOS_MDNS_REFRESH_S="1", LMOS_MDNS_TRUST="true"
    )
    with lan.at_the_other():
        theirs = north.agent(GREETER.replace("Hello!", "Hello from the north!"))
        second = north.service("mdns", LMOS_MDNS_REFRESH_S="1")
    async with mesh_machine.client() as mesh:
        await adapter.logged("answering for greeter")
        await until_live(mesh, "greeter")

        said = await mesh.invoke("greeter", "greet", {"question": "Hi"})
        assert said == "Hello from the north!"
        found = await mesh.bus.call(GET_THING, GetThing(name="greeter"))
        assert found.external
        asked = await mesh.ask("hello", agent="greeter")
        assert asked.answer == "Hello from the north!"

        ours = await asyncio.to_thread(mesh_machine.agent, GREETER)
        await until_instances(mesh, "greeter", {ours.instance})
        for _ in range(20):
            assert await mesh.invoke("greeter", "greet", {"question": "Hi"}) == "Hello!"

        ours.terminate()
        await ours.ended()
        await until_instances(mesh, "greeter", {adapter.instance})
        theirs.terminate()
        await until_gone(mesh, "urn:lmos-mesh:demo:greeter:stable")
    for one in (adapter, second):
        one.terminate()
        assert await one.ended() == 0


async def until_live(mesh: Mesh, name: str, within_s: float = 15.0) -> None:
    """Wait until an agent has an instance."""
    until = time.monotonic() + within_s
    while not await instances_of(mesh, name):
        assert time.monotonic() < until, f"{name} is not live"
        await asyncio.sleep(0.05)


async def until_instances(
    mesh: Mesh, name: str, instances: set[str], within_s: float = 15.0
) -> None:
    """Wait until exactly these serve an agent."""
    until = time.monotonic() + within_s
    while (found := await instances_of(mesh, name)) != instances:
        assert time.monotonic() < until, f"{name} is served by {found}"
        await asyncio.sleep(0.05)


# -- avahi --


@pytest.fixture
def avahi(lan: Lan, tmp_path: Path) -> Generator[Callable[..., subprocess.Popen[str]]]:
    """Runs avahi's programs on the other machine, beside a daemon of their own."""
    missing = [
        one
        for one in ("avahi-daemon", "avahi-browse", "avahi-publish", "dbus-daemon", "unshare")
        if shutil.which(one) is None
    ]
    if missing:
        _give_up(f"{missing[0]} is not installed (packages avahi-daemon, avahi-utils, dbus)")
    bus = f"unix:path={tmp_path}/bus"
    (tmp_path / "dbus.conf").write_text(
        f"""<busconfig><listen>{bus}</listen><policy context="default"><allow user="*"/>
        <allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
        </busconfig>"""
    )
    (tmp_path / "avahi.conf").write_text(
        "[server]\nhost-name=other\nuse-ipv6=no\nallow-interfaces=lan1\nenable-dbus=yes\n"
    )
    Path("/run/avahi-daemon").mkdir(exist_ok=True)
    env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus}
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        with lan.at_the_other():
            process = subprocess.Popen(
                command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        started.append(process)
        return process

    try:
        start("dbus-daemon", f"--config-file={tmp_path}/dbus.conf", "--nofork", "--nopidfile")
        _wait_for((tmp_path / "bus").exists)
        # Its pid file has one place only, where another daemon's may be.
        start(
            *("unshare", "-m", "sh", "-c"),
            "mount -t tmpfs none /run/avahi-daemon && exec avahi-daemon --no-drop-root"
            f" --no-chroot --no-rlimits -f {tmp_path}/avahi.conf",
        )
        time.sleep(1.0)
        yield start
    finally:
        for one in reversed(started):
            one.terminate()
            one.communicate(timeout=10)


def _wait_for(true: Callable[[], bool], within_s: float = 10.0) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.usefixtures("adapter")
async def test_avahi_browses_the_directory(
    avahi: Callable[..., subprocess.Popen[str]],
) -> None:
    for browsed in ("_wot._tcp", "_directory._sub._wot._tcp"):
        browser = avahi("avahi-browse", "-rpt", browsed)
        seen, _ = await asyncio.to_thread(browser.communicate, timeout=20)

        resolved = [line for line in seen.splitlines() if line.startswith("=")]
        assert any(
            "LMOS\\032demo" in line and MESH in line and '"td=/.well-known/wot"' in line
            for line in resolved
        ), seen


@pytest.mark.usefixtures("adapter")
async def test_what_avahi_publishes_is_found_until_it_is_withdrawn(
    mesh_machine: Deployment, site: Site, avahi: Callable[..., subprocess.Popen[str]]
) -> None:
    site.put("/td", lamp(id="urn:dev:by-avahi"))
    async with mesh_machine.client() as mesh:
        publisher = avahi("avahi-publish", "-s", "By avahi", "_wot._tcp", str(site.port), "td=/td")
        await until_listed(mesh, "urn:dev:by-avahi")

        publisher.terminate()
        await until_gone(mesh, "urn:dev:by-avahi")
