"""The HTTP adapter as a process: its settings, its socket, and how it ends."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from pydantic import Field

from lmos_mesh import micro
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError, Unavailable
from lmos_mesh.lease import RENEW_S, LeaseKeeper
from lmos_mesh.service import VERSION, run_forever
from lmos_mesh.settings import Settings
from lmos_mesh_http.app import make_app
from lmos_mesh_http.asking import Asker
from lmos_mesh_http.lmos_operator_routes import Channels
from lmos_mesh_http.places import Places, reachable_url
from lmos_mesh_http.server import Server, listen, url_of

logger = logging.getLogger(__name__)

# What breaking off the last answers may take of the time for draining.
_FAREWELL_S = 0.5


class HttpSettings(Settings):
    """Settings of the HTTP adapter.

    Attributes:
        http_port: 0 for any free one.
        http_body_limit: The most bytes that a request may have.
        http_cors_origins: Origins whose web pages may call, separated by commas.
        http_answer_timeout_s: How long an answer may take in all.
        http_stall_timeout_s: How long a client may read nothing of what is sent to it.
        http_bus_wait_s: How long a request waits for a lost bus.
        http_public_url: Where others reach this adapter, if that is not where it listens.
    """

    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8420, ge=0, le=65535)
    http_body_limit: int = Field(default=1024 * 1024, ge=1)
    http_cors_origins: str = ""
    http_answer_timeout_s: float = Field(default=300.0, gt=0)
    http_stall_timeout_s: float = Field(default=30.0, gt=0)
    http_bus_wait_s: float = Field(default=2.0, gt=0)
    http_public_url: str = Field(
        default="", max_length=1024, pattern=r"^(https?://[^\s/?#<>\"]+(/[^\s?#<>\"]*)?)?$"
    )


class HttpAdapter:
    """Lets HTTP clients ask the mesh.

    Attributes:
        url: Where it listens, once it is ready.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._asker: Asker | None = None
        self._server: Server | None = None
        self._lease: LeaseKeeper | None = None
        self._ended = asyncio.Event()
        self.url = ""

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Serve until cancelled.

        Raises:
            SettingsError: Nobody can listen where the settings say.
        """
        settings = self._settings
        listener = listen(settings.http_host, settings.http_port)
        self.url = url_of(listener)
        asker = self._asker = Asker(
            bus,
            answer_timeout_s=settings.http_answer_timeout_s,
            bus_wait_s=settings.http_bus_wait_s,
        )
        origins = (one.strip() for one in settings.http_cors_origins.split(","))
        host, port = listener.getsockname()[:2]
        places = Places(public=settings.http_public_url, own=reachable_url(self.url, host, port))
        channels = Channels(Applied(bus))
        app = make_app(
            bus,
            asker,
            places,
            channels,
            body_limit=settings.http_body_limit,
            stall_timeout_s=settings.http_stall_timeout_s,
            cors_origins=tuple(one for one in origins if one),
        )
        server = self._server = Server(app, listener)
        try:
            await self._announce(bus)
            lease = self._lease = LeaseKeeper(
                bus, address={"protocol": "http", "url": places.announced}
            )
            bus.spawn(_begin(lease), name="begin-lease")
            bus.spawn(channels.follow(), name="channels")
            logger.info("listening on %s", self.url)
            ready()
            await server.run_until_stopped()
            self._ended.set()
            await run_forever()
        finally:
            server.abort()

    async def leave(self) -> None:
        """Accept nothing more and finish what was begun; near the end of the time, break it off."""
        if self._server is None or self._asker is None:
            return
        self._server.stop()
        self._asker.closing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._settings.drain_timeout_s - _FAREWELL_S)):
                if self._lease is not None:
                    await self._lease.leave()
                await self._ended.wait()
                return
        self._asker.break_off(Unavailable("this adapter is stopping", hint="ask again"))
        await self._ended.wait()

    async def _announce(self, bus: Bus) -> None:
        """Be found by the NATS tools, with the URL: the port may be any."""
        await micro.announce(
            bus.transport,
            micro.MicroService(
                name="lmos-http",
                id=bus.instance,
                version=VERSION,
                description="The mesh over HTTP",
                metadata={"tenant": bus.tenant, "url": self.url},
                endpoints=(),
            ),
        )


async def _begin(lease: LeaseKeeper) -> None:
    """Be known as a way to the agents of the mesh; what does not need that is served meanwhile."""
    while True:
        try:
            await lease.begin()
        except MeshError as exc:
            logger.warning("cannot make this adapter known yet: %s", exc)
            await asyncio.sleep(RENEW_S)
        else:
            return
