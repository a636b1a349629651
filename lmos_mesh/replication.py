"""How many servers keep a bucket or stream: asked for when it is made, raised where fewer do.

Never lowered: what is kept by more than a process asks for is somebody's choice.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from lmos_mesh.errors import MeshError, SettingsError, Unavailable
from lmos_mesh.settings import Keeping

logger = logging.getLogger(__name__)

_NO_PEERS = 10005
_NOT_FOUND = 10059
_NO_CLUSTER = 10074

# Processes that start together would all raise the same stream. It does no harm, but a cluster
# leaves one of several such requests without an answer.
_APART_S = 0.4
_ANSWER_S = 2.0
_LED_S = 5.0
_LED_POLL_S = 0.02
_TRIES = 5


class Call(Protocol):
    """One request to JetStream; see `jetstream.JetStream.call`."""

    def __call__(
        self, operation: str, body: dict[str, Any] | None = None, *, timeout_s: float = ...
    ) -> Awaitable[dict[str, Any]]:
        """Its answer."""
        ...


class Replication:
    """What a process asks of the servers that keep its buckets and streams.

    Args:
        call: Asks JetStream.
        keeping: What is asked for.
        where: The servers, for whoever reads that they cannot.
    """

    def __init__(self, call: Call, keeping: Keeping, *, where: str) -> None:
        self._call = call
        self._keeping = keeping
        self._where = where
        self._told: set[str] = set()

    def of_new(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of a stream that is made, with who keeps it."""
        made = {**config, "num_replicas": self._keeping.replicas or 1}
        if self._keeping.tags:
            made["placement"] = {"tags": list(self._keeping.tags)}
        return made

    def refusal(self, name: str, refused: MeshError) -> MeshError:
        """Why a stream cannot be kept as it was asked for, with what to do; else as it was said."""
        replicas = self._keeping.replicas or 1
        code = refused.details.get("err_code")
        if code == _NO_CLUSTER:
            return SettingsError(
                f"LMOS_NATS_REPLICAS is {replicas}, but the NATS server at {self._where} is a "
                f"single one and keeps {name} alone",
                hint=f"name a cluster of {replicas} or more servers with JetStream in "
                "LMOS_NATS_URL, or unset LMOS_NATS_REPLICAS",
            )
        if code == _NO_PEERS and (replicas > 1 or self._keeping.tags):
            tagged = ""
            if self._keeping.tags:
                tagged = f", tagged {' and '.join(self._keeping.tags)} (LMOS_NATS_PLACEMENT)"
            return type(refused)(
                f"the NATS cluster at {self._where} has no {replicas} servers that could keep "
                f"{name} ({refused.message.removeprefix('JetStream: ')})",
                hint=f"LMOS_NATS_REPLICAS={replicas} needs as many that run with JetStream, with "
                f"room left{tagged}; `lmos doctor`",
                **refused.details,
            )
        return refused

    async def until_led(self, name: str, told: Mapping[str, Any]) -> None:
        """Wait until a stream can be used, which a cluster does not before it says it is made.

        Args:
            name: Of the stream.
            told: What was answered when it was made.

        Raises:
            Unavailable: Its servers have not agreed who leads them.
        """
        try:
            async with asyncio.timeout(_LED_S):
                while not _led(told):
                    await asyncio.sleep(_LED_POLL_S)
                    try:
                        told = await self._call(f"STREAM.INFO.{name}")
                    except MeshError as exc:
                        if exc.details.get("err_code") != _NOT_FOUND:
                            raise
        except TimeoutError:
            raise Unavailable(
                f"the servers that keep {name} have not agreed who leads them",
                hint="more than half of them must run; `lmos doctor`",
            ) from None

    async def settle(self, name: str) -> None:
        """Raise a stream that is kept by fewer servers than asked for; one of many may do it.

        All else about it stays as it is: feeds, mirrors, what somebody has set by hand.

        Raises:
            SettingsError: There is a single server, which keeps everything alone.
        """
        wanted = self._keeping.replicas
        if wanted is None:
            return
        for attempt in range(_TRIES):
            config = (await self._call(f"STREAM.INFO.{name}"))["config"]
            kept = int(config["num_replicas"])
            if kept > wanted:
                self._tell(
                    name,
                    f"{name} is kept by {kept} servers and stays so, though LMOS_NATS_REPLICAS is "
                    f"{wanted}; lower it with `nats stream edit {name} --replicas {wanted}`",
                )
            if kept >= wanted:
                return
            if attempt == 0:
                await asyncio.sleep(random.uniform(0, _APART_S))
                continue
            try:
                await self._call(
                    f"STREAM.UPDATE.{name}",
                    {**config, "num_replicas": wanted},
                    timeout_s=_ANSWER_S,
                )
            except Unavailable:
                continue  # somebody else may have been first: look again
            except MeshError as exc:
                why = self.refusal(name, exc)
                if isinstance(why, SettingsError):
                    raise why from exc
                self._tell(name, f"{name} stays with {kept} of {wanted} replicas: {why}")
                return
            logger.info("%s is kept by %d servers from now on; it was %d", name, wanted, kept)
            return

    def _tell(self, name: str, said: str) -> None:
        """Warn once: a stream is looked at again after every reconnect."""
        if name not in self._told:
            self._told.add(name)
            logger.warning(said)


def _led(told: Mapping[str, Any]) -> bool:
    """Whether a stream has a leader; a single server says nothing about one."""
    return "cluster" not in told or bool(told["cluster"].get("leader"))
