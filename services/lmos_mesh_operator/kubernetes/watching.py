"""Watches the cluster with kopf, and hands what it sees to the loop of the mesh.

kopf has a thread and a loop of its own: when it ends it cancels every task of its loop that it has
not known before, and it takes the signals of the process for itself.
"""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lmos_mesh.errors import SettingsError
from lmos_mesh.resources import GROUP, KINDS, VERSION
from lmos_mesh_operator.kubernetes.cluster import configured

logger = logging.getLogger(__name__)

DOMAIN = "operator.lmos.eclipse"
_SERVER_S = 240
_CLIENT_S = 300
_CONNECT_S = 15
_BACKOFFS_S = (1, 2, 3, 5, 5, 5)
_JOIN_S = 15.0
_CLOSING_S = 0.05
_WAITING = 200
# What belongs to a thread that is not the main one, and is as it should be.
_OF_COURSE = ("OS signals are ignored",)

Sees = Callable[[str, Mapping[str, Any], bool], None]
"""Takes a kind, an object of it, and whether it is gone."""


class Watch:
    """What kopf sees, as long as it runs.

    Args:
        sees: Called in the loop in which `run` is.
        namespaces: Which ones; none for all.
        instance: Whose events they are that are posted.
    """

    def __init__(self, sees: Sees, *, namespaces: Sequence[str], instance: str) -> None:
        self._sees = sees
        self._namespaces = tuple(namespaces)
        self._instance = instance
        self._context: contextvars.Context | None = None
        self._waiting: list[Callable[[], None]] = []

    async def run(self) -> None:
        """Watch until cancelled; ends when kopf does.

        Raises:
            SettingsError: kopf is not installed.
            Exception: Whatever has ended kopf.
        """
        kopf = loaded()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        stop = _Stop()
        self._context = None

        def work() -> None:
            failure: BaseException | None = None
            try:
                asyncio.run(self._watch(kopf, loop, stop))
            except BaseException as exc:
                failure = exc
            with suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(_end, ended, failure)

        thread = threading.Thread(target=work, name="kopf", daemon=True)
        thread.start()
        try:
            await ended
        finally:
            stop.set()
            # Awaited, so that two never run at once; a cluster that hangs must not hold us.
            with suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(_JOIN_S):
                    await asyncio.to_thread(thread.join, _JOIN_S)
            self._context = None

    def tell(self, body: Mapping[str, Any], *, normal: bool, reason: str, message: str) -> None:
        """Post a Kubernetes event about an object."""
        kopf = loaded()

        def post() -> None:
            kind = "Normal" if normal else "Warning"
            kopf.event(dict(body), type=kind, reason=reason, message=message)

        if self._context is None:
            # kopf posts events in the context of what it handles, and there was nothing yet.
            if len(self._waiting) < _WAITING:
                self._waiting.append(post)
            return
        self._context.run(post)

    async def _watch(self, kopf: Any, loop: asyncio.AbstractEventLoop, stop: "_Stop") -> None:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(_login(kopf))

        def follow(kind: str, *selector: str) -> None:
            async def on_event(event: Mapping[str, Any], **_: Any) -> None:
                context = contextvars.copy_context()
                gone = event.get("type") == "DELETED"
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(
                        self._hand_over, context, kind, dict(event["object"]), gone
                    )

            kopf.on.event(*selector, registry=registry, id=f"see-{kind}")(on_event)

        for kind, model in KINDS.items():
            follow(kind, GROUP, VERSION, model.plural)
        follow("Deployment", "apps", "v1", "deployments")
        follow("Service", "", "v1", "services")
        where: dict[str, Any] = (
            {"namespaces": self._namespaces} if self._namespaces else {"clusterwide": True}
        )
        stopping = asyncio.Event()
        stop.of(asyncio.get_running_loop(), stopping)
        try:
            await kopf.operator(
                registry=registry,
                settings=_settings(kopf, self._instance),
                standalone=True,
                stop_flag=stopping,
                **where,
            )
        finally:
            # Its connections are closed by callbacks, for which the loop has to turn.
            await asyncio.sleep(_CLOSING_S)

    def _hand_over(
        self, context: contextvars.Context, kind: str, body: Mapping[str, Any], gone: bool
    ) -> None:
        self._context = context
        waiting, self._waiting = self._waiting, []
        for post in waiting:
            context.run(post)
        self._sees(kind, body, gone)


class _Stop:
    """Sets an event of another thread's loop, also if that has not come up yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._at: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def of(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        with self._lock:
            self._at = loop, event
            if self._is_set:
                event.set()

    def set(self) -> None:
        with self._lock:
            self._is_set = True
            if self._at is not None:
                loop, event = self._at
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(event.set)


def loaded() -> Any:
    """The package kopf, imported only where a cluster is spoken to.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import kopf
    except ImportError as exc:
        raise SettingsError(
            f"the Kubernetes mode needs packages that are not installed: {exc}",
            hint="pip install 'lmos-mesh[kubernetes]', or unset LMOS_OPERATOR_KUBERNETES",
        ) from None
    _quieten()
    return kopf


def _settings(kopf: Any, instance: str) -> Any:
    settings = kopf.OperatorSettings()
    # A stream that is dead behind a load balancer must end some time, on either side.
    settings.watching.server_timeout = _SERVER_S
    settings.watching.client_timeout = _CLIENT_S
    settings.watching.connect_timeout = _CONNECT_S
    # So long at most nothing is seen when the API is back after an outage.
    settings.networking.error_backoffs = _BACKOFFS_S
    # Nothing of kopf's is written to objects; if it ever is, it is under our name, and it is not
    # in their status, where the definitions would prune it.
    settings.persistence.finalizer = f"{DOMAIN}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=DOMAIN)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=DOMAIN)
    settings.posting.enabled = True
    settings.posting.reporting_component = "lmos-operator"
    settings.posting.reporting_instance = instance
    settings.posting.event_name_prefix = "lmos-"
    # Our kinds are there before we begin; watching definitions and namespaces takes more rights.
    settings.scanning.disabled = True
    return settings


def _login(kopf: Any) -> Callable[..., Any]:
    async def login(**_: Any) -> Any:
        config = await configured()
        header = str(await config.get_api_key_with_prefix("BearerToken") or "")
        scheme, _space, token = header.rpartition(" ")
        return kopf.ConnectionInfo(
            server=config.host,
            ca_path=config.ssl_ca_cert,
            insecure=not config.verify_ssl,
            username=config.username or None,
            password=config.password or None,
            scheme=scheme or None,
            token=token or None,
            certificate_path=config.cert_file,
            private_key_path=config.key_file,
            proxy_url=config.proxy,
        )

    return login


def _end(ended: "asyncio.Future[None]", failure: BaseException | None) -> None:
    if ended.done():
        return
    if isinstance(failure, Exception):
        ended.set_exception(failure)
    else:
        ended.set_result(None)


class _NotOfCourse(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_OF_COURSE)


def _quieten() -> None:
    noisy = logging.getLogger("kopf._core.reactor.running")
    if not any(isinstance(one, _NotOfCourse) for one in noisy.filters):
        noisy.addFilter(_NotOfCourse())
        # That each handler was called, once per object and change.
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
        logging.getLogger("kopf.activities").setLevel(logging.WARNING)
