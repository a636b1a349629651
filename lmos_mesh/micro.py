"""Every process is a NATS micro service (ADR-32), so that `nats micro ls` shows the mesh."""

import datetime
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lmos_mesh.errors import MeshError
from lmos_mesh.transport import Packet, Subscription, Transport

logger = logging.getLogger(__name__)

_TYPE = "io.nats.micro.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroEndpoint:
    """One subject that a service answers."""

    name: str
    subject: str
    queue_group: str
    metadata: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class Tally:
    """What an endpoint has done so far. Times in nanoseconds."""

    requests: int = 0
    errors: int = 0
    busy_ns: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroService:
    """One service of a process.

    Args:
        name: `[A-Za-z0-9_-]+`.
        id: What tells its instances apart.
        version: Semver.
        metadata: Strings only.
        endpoints: What it answers.
        tally: Gives the numbers of an endpoint by name.
    """

    name: str
    id: str
    version: str
    description: str
    endpoints: tuple[MicroEndpoint, ...]
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    tally: Callable[[str], Tally] = lambda _: Tally()
    started: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat())

    def ping(self) -> dict[str, Any]:
        """The answer to `$SRV.PING`."""
        return {**self._who("ping")}

    def info(self) -> dict[str, Any]:
        """The answer to `$SRV.INFO`."""
        return {
            **self._who("info"),
            "description": self.description,
            "endpoints": [
                {
                    "name": one.name,
                    "subject": one.subject,
                    "queue_group": one.queue_group,
                    "metadata": one.metadata,
                }
                for one in self.endpoints
            ],
        }

    def stats(self) -> dict[str, Any]:
        """The answer to `$SRV.STATS`."""
        return {
            **self._who("stats"),
            "started": self.started,
            "endpoints": [self._endpoint_stats(one) for one in self.endpoints],
        }

    def _who(self, answer: str) -> dict[str, Any]:
        return {
            "type": f"{_TYPE}.{answer}_response",
            "name": self.name,
            "id": self.id,
            "version": self.version,
            "metadata": self.metadata,
        }

    def _endpoint_stats(self, one: MicroEndpoint) -> dict[str, Any]:
        tally = self.tally(one.name)
        return {
            "name": one.name,
            "subject": one.subject,
            "queue_group": one.queue_group,
            "num_requests": tally.requests,
            "num_errors": tally.errors,
            "last_error": tally.last_error,
            "processing_time": tally.busy_ns,
            "average_processing_time": tally.busy_ns // max(1, tally.requests),
        }


async def announce(transport: Transport, service: MicroService) -> list[Subscription]:
    """Answer `$SRV.PING`, `INFO` and `STATS` for a service: to all, by name, and by id."""

    def on_packet(packet: Packet) -> None:
        verb = packet.subject.split(".")[1]
        answer = {"PING": service.ping, "INFO": service.info, "STATS": service.stats}.get(verb)
        if answer is not None and packet.reply:
            try:
                transport.publish(packet.reply, json.dumps(answer()).encode())
            except MeshError as exc:
                logger.warning("could not answer %s: %s", packet.subject, exc)

    return [
        await transport.subscribe(pattern, on_packet)
        for pattern in (
            "$SRV.*",
            f"$SRV.*.{service.name}",
            f"$SRV.*.{service.name}.{service.id}",
        )
    ]
