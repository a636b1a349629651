"""Who answers on the bus: a process that does has started."""

import json
from contextlib import suppress
from dataclasses import dataclass, field

from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError
from lmos_mesh.transport import Packet


@dataclass(slots=True)
class Answering:
    """Which micro services answer on the bus: a process that does has started."""

    _ids: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    _claimed: set[str] = field(default_factory=set[str])
    _bus: Bus | None = None
    _inbox: str = ""

    async def listen(self, bus: Bus) -> None:
        """Hear what is answered from now on."""
        self._bus = bus
        self._inbox = bus.transport.open_inbox(self._on_answer).subject

    def ask(self, subject: str) -> None:
        """Ask for answers on a subject."""
        assert self._bus is not None, "listen first"
        with suppress(MeshError):
            self._bus.transport.publish(subject, b"", reply=self._inbox)

    def known(self, service: str) -> frozenset[str]:
        """Who has answered so far: a process that starts now is none of them."""
        return frozenset(self._ids.get(service, ()))

    def claim(self, service: str, before: frozenset[str]) -> bool:
        """Whether a new instance answers that nobody has claimed; if not, ask again."""
        if fresh := self._ids.get(service, set()) - before - self._claimed:
            self._claimed.add(fresh.pop())
            return True
        self.ask(f"$SRV.PING.{service}")
        return False

    def _on_answer(self, packet: Packet) -> None:
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(packet.payload)
            self._ids.setdefault(str(told["name"]), set()).add(str(told["id"]))
