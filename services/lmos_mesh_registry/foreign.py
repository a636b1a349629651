"""Agents hosted with other software, met on the bus by the Synadia Agent Protocol.

They register nowhere: they are seen by `$SRV.INFO.agents` and their heartbeats, enter as external
with one capability made of their description, and are dead by three missed heartbeats or when
nobody answers for them any more.
"""

import asyncio
import json
import logging
import math
import re
from typing import Any

from lmos_mesh import subjects, synadia
from lmos_mesh.bus import Bus
from lmos_mesh.description import describe
from lmos_mesh.errors import Conflict, InvalidDescription, MeshError, Unavailable
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.membership import PROTOCOL, Membership
from lmos_mesh.semver import BadVersion, Version
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import DEFAULT_SUBSET, DEFAULT_VERSION, ThingKey
from lmos_mesh.transport import Packet
from lmos_mesh_registry.entries import Entries
from lmos_mesh_registry.registering import FOR_GOOD

logger = logging.getLogger(__name__)

_MISSED = 3
_PROBE_S = 0.25

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
# What a stranger has us send to: no wildcard, and nothing that the mesh or the server means by it.
_SUBJECT = re.compile(r"(?!lmos\.|_|\$)(?=.{1,512}\Z)[^\s.*>]+(\.[^\s.*>]+)*")
# What strangers say may be of any shape.
_UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_USUAL_INTERVAL_S = 30.0
"""What the protocol recommends; taken until the first heartbeat says what it is."""


class ForeignAgents:
    """Keeps the leases of those who keep none themselves."""

    def __init__(self, bus: Bus, membership: Membership, entries: Entries, tenant: str) -> None:
        self._bus = bus
        self._membership = membership
        self._entries = entries
        self._tenant = tenant
        self._known: dict[str, Lease] = {}
        self._leases = bus.transport.key_value(LEASES)

    async def follow(self) -> None:
        """Look around, and listen to heartbeats from now on."""
        transport = self._bus.transport
        await transport.subscribe(synadia.HEARTBEATS, self._on_heartbeat)
        await transport.subscribe(subjects.DISCONNECTS, self._on_disconnect)
        inbox = transport.open_inbox(self._on_info)  # answers come for as long as we live
        transport.publish(f"$SRV.INFO.{synadia.SERVICE}", b"", reply=inbox.subject)

    def _on_info(self, packet: Packet) -> None:
        if packet.payload:
            self._bus.spawn(self._enter(packet.payload), name="foreign")

    def _on_heartbeat(self, packet: Packet) -> None:
        try:
            beat = json.loads(packet.payload)
            agent, instance = str(beat["agent"]), str(beat["instance_id"])
            interval_s = float(beat["interval_s"])
        except _UNREADABLE:
            return
        if agent != synadia.OURS and 0 < interval_s < 3600 and _ID.fullmatch(instance):
            self._bus.spawn(self._heard(instance, interval_s), name="foreign")

    def _on_disconnect(self, packet: Packet) -> None:
        if self._known:
            self._bus.spawn(self._probe_all(), name="foreign")

    async def _heard(self, instance: str, interval_s: float) -> None:
        try:
            lease = self._known.get(instance)
            if lease is None or not self._entered(lease):
                packet = await self._bus.transport.request(
                    f"$SRV.INFO.{synadia.SERVICE}.{instance}", b"", timeout_s=2.0
                )
                await self._enter(packet.payload, interval_s=interval_s)
            else:
                await self._renew(lease, interval_s)
        except MeshError as exc:
            logger.info("a foreign agent's heartbeat: %s", exc)

    def _entered(self, lease: Lease) -> bool:
        """Whether the registry still has what an agent serves; somebody may have removed it."""
        keys = (ThingKey(self._tenant, one.name, one.subset) for one in lease.things)
        return all(self._membership.get(key) is not None for key in keys)

    async def _enter(self, payload: bytes, *, interval_s: float = _USUAL_INTERVAL_S) -> None:
        try:
            info = json.loads(payload)
            entry = _read(info, self._tenant)
        except _UNREADABLE:
            return  # it calls itself an agent and is none
        if entry is None:
            return
        raw, lease = entry
        held = self._membership.lease(self._tenant, lease.instance)
        if held is not None and not held.address:
            return  # it calls itself as one of our own processes does
        try:
            thing = thing_from(raw)
            key = ThingKey(self._tenant, thing.name, thing.subset)
            description = describe(thing)
            held = await self._entries.get(key)
            if held is None or held.description != description:
                await self._entries.put(key, description, held, FOR_GOOD)
                logger.info("met the agent %s, hosted with other software", thing.name)
        except Conflict:
            pass  # another replica met it at the same time
        except InvalidDescription as exc:
            logger.warning("an agent hosted with other software is not taken in: %s", exc)
            return
        except MeshError as exc:
            logger.warning("could not take in a foreign agent: %s", exc)
            return
        self._known[lease.instance] = lease
        await self._renew(lease, interval_s)

    async def _renew(self, lease: Lease, interval_s: float) -> None:
        ttl_s = max(2, math.ceil(interval_s * _MISSED))
        try:
            await self._leases.put(
                subjects.key(self._tenant, lease.instance),
                lease.model_dump_json().encode(),
                ttl_s=ttl_s,
            )
        except MeshError as exc:
            logger.warning("could not renew the lease of %s: %s", lease.instance, exc)

    async def _probe_all(self) -> None:
        """Somebody has left: was it one of those whose connection we cannot name?"""
        async with asyncio.TaskGroup() as group:
            for instance in list(self._known):
                group.create_task(self._probe(instance))

    async def _probe(self, instance: str) -> None:
        try:
            await self._bus.transport.request(
                f"$SRV.PING.{synadia.SERVICE}.{instance}", b"", timeout_s=_PROBE_S
            )
        except Unavailable:
            self._known.pop(instance, None)
            self._bus.lose(instance, "has disconnected")
            try:
                await self._leases.delete(subjects.key(self._tenant, instance))
            except MeshError as exc:
                logger.info("could not end the lease of %s: %s", instance, exc)
        except MeshError:
            pass  # slow is not dead; its heartbeats decide


def _read(info: dict[str, Any], tenant: str) -> tuple[dict[str, Any], Lease] | None:
    """(record, lease) of a service that speaks the protocol and is not ours."""
    metadata: dict[str, Any] = info.get("metadata") or {}
    agent = str(metadata.get("agent") or "")
    if info.get("name") != synadia.SERVICE or not agent or agent == synadia.OURS:
        return None
    if not str(metadata.get("protocol_version", "")).startswith("0."):
        return None
    subject = next(
        (str(one["subject"]) for one in info["endpoints"] if one["name"] == "prompt"), ""
    )
    instance = str(info["id"])
    if not _ID.fullmatch(instance) or not _SUBJECT.fullmatch(subject):
        return None
    # Its own subject's last token names the session, also where the metadata do not. With its
    # owner, since two people may well run the same agent, and must not answer for each other.
    owner = str(metadata.get("owner") or "")
    session = subjects.unescape(subject.rsplit(".", 1)[-1])
    name = "-".join(part for part in (agent, owner, session) if part)
    description = str(info.get("description") or f"{agent} of {metadata.get('owner', '?')}")
    version = _version(str(info.get("version", "")))
    raw: dict[str, Any] = {
        "name": name,
        "tenant": tenant,
        "version": version,
        "description": description,
        "capabilities": [
            {"id": "prompt", "name": name, "version": version, "description": description}
        ],
        "metadata": {PROTOCOL: f"synadia-agent-protocol/{metadata['protocol_version']}"},
        "external": True,
    }
    lease = Lease(
        instance=instance,
        things=(Served(name=name, subset=DEFAULT_SUBSET, version=version),),
        address={"protocol": "synadia", "prompt": subject},
    )
    return raw, lease


def _version(text: str) -> str:
    try:
        Version.parse(text)
    except BadVersion:
        return DEFAULT_VERSION
    return text
