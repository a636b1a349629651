"""The operator's Kubernetes mode: watches, mirrors and describes, while this operator leads."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.directory import Directory
from lmos_mesh.errors import Conflict, MeshError, NotFound, SettingsError
from lmos_mesh.resource_index import ResourceKey
from lmos_mesh.resource_store import RESOURCES
from lmos_mesh.resources import KINDS
from lmos_mesh.things import ThingKey
from lmos_mesh_operator.kubernetes.cluster import OURS, Cluster, Forbidden, connected
from lmos_mesh_operator.kubernetes.deployments import template_fault
from lmos_mesh_operator.kubernetes.described import Described
from lmos_mesh_operator.kubernetes.mirror import Mirror
from lmos_mesh_operator.kubernetes.watching import Watch, loaded

logger = logging.getLogger(__name__)

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_AGAIN_S = 5.0
# Watches may miss what happens while they are renewed.
_READ_AGAIN_S = 300.0
_FIRST_READ_AGAIN_S = 5.0
_UNKNOWN_S = 0.05
# No kind of resource is called so: everybody leaves it alone.
_IDENTITY = subjects.key("lmos", "store", "identity")


class KubernetesMode:
    """Both sides of the mirror, and whatever keeps them alike.

    Args:
        bus: The mesh.
        applied: What there is on it.
        directory: Who is on it.
        is_leader: Whether this operator leads.
        namespaces: Which ones are mirrored; none for all.
        home: The namespace in which agents of the mesh are shown; empty for our own.
        template: Where Deployments say what they can do.
        ask_again_s: How long to wait before a Deployment that cannot say so is asked again.
        clock: Unix seconds.
    """

    def __init__(
        self,
        bus: Bus,
        applied: Applied,
        directory: Directory,
        is_leader: Callable[[], bool],
        *,
        namespaces: Sequence[str],
        home: str,
        template: str,
        ask_again_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.mirror: Mirror | None = None
        self._bus = bus
        self._applied = applied
        self._directory = directory
        self._is_leader = is_leader
        self._namespaces = tuple(namespaces)
        self._home = home or own_namespace()
        self._template = template
        self._ask_again_s = ask_again_s
        self._clock = clock
        self._closed: tuple[str, ...] = ()
        self._described: Described | None = None
        applied.on_change(self._on_resources)
        directory.on_change(self._on_things)

    async def check(self) -> None:
        """See that there is what this mode needs.

        Raises:
            SettingsError: A package is not installed, no cluster is known, or the template of
                Deployments' URLs is none.
        """
        loaded()
        if fault := template_fault(self._template):
            raise SettingsError(
                f"LMOS_OPERATOR_CAPABILITIES_URL={self._template}: {fault}",
                hint="its fields are {scheme}, {service}, {namespace} and {port}",
            )
        async with connected():
            pass

    async def run(self) -> None:
        """Mirror until cancelled, whatever becomes of the cluster."""
        while True:
            try:
                async with connected() as cluster:
                    await self._run(cluster)
            except* SettingsError:
                raise
            except* MeshError as group:
                for error in _leaves(group):
                    logger.error("the cluster is not mirrored, trying again: %s", _told(error))
            except* Exception as group:
                # kopf ends with whatever has ended it.
                logger.exception("watching the cluster ended, trying again", exc_info=group)
            finally:
                self.mirror = self._described = None
            await asyncio.sleep(_AGAIN_S)

    async def _run(self, cluster: Cluster) -> None:
        namespaces = await self._readable(cluster)
        store = await identity(self._bus)
        await self._until_known(time.time())

        async def is_same_store() -> bool:
            return await _known_identity(self._bus) == store

        watch = Watch(self._on_object, namespaces=namespaces, instance=self._bus.instance)
        mirror = Mirror(
            self._bus,
            self._applied,
            self._directory,
            cluster,
            tell=watch.tell,
            store=store,
            is_same_store=is_same_store,
            namespaces=namespaces,
            home=self._home,
            is_leader=self._is_leader,
            clock=self._clock,
        )
        described = Described(
            cluster,
            mirror,
            tell=watch.tell,
            template=self._template,
            namespaces=namespaces,
            is_leader=self._is_leader,
            clock=self._clock,
            first_s=self._ask_again_s,
        )
        # Until then nobody knows what is missing in the cluster, and what only was not read yet.
        await mirror.read()
        await described.read()
        self.mirror, self._described = mirror, described
        mirror.everything()
        where = ", ".join(namespaces) or "all namespaces"
        logger.info("mirroring %s of the cluster", where)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(mirror.levels.run())
            tasks.create_task(described.levels.run())
            tasks.create_task(self._read_again(cluster, namespaces, mirror, described))
            tasks.create_task(_until_lost(mirror))
            await watch.run()
            raise MeshError("the cluster is not watched any more")

    async def _until_known(self, at: float) -> None:
        """Wait until what is known of the store is as of then.

        What was known of one that is lost must not be taken for what its successor has.
        """
        while True:
            if self._applied.as_of >= at:
                return
            await asyncio.sleep(_UNKNOWN_S)

    async def _readable(self, cluster: Cluster) -> tuple[str, ...]:
        """Those of the namespaces in which the cluster lets us read; none for all.

        One that was deleted took our rights in it along, and must not keep us from the others.

        Raises:
            Forbidden: There is none.
        """
        readable: list[str] = []
        closed: dict[str, Forbidden] = {}
        for namespace in self._namespaces:
            try:
                await cluster.request("GET", OURS["Channel"].at(namespace), query={"limit": "1"})
                readable.append(namespace)
            except Forbidden as exc:
                closed[namespace] = exc
        if closed and not readable:
            raise next(iter(closed.values()))
        if tuple(closed) != self._closed:
            for namespace, exc in closed.items():
                logger.error("namespace %r is not mirrored: %s", namespace, exc)
            self._closed = tuple(closed)
        return tuple(readable)

    async def _read_again(
        self,
        cluster: Cluster,
        namespaces: tuple[str, ...],
        mirror: Mirror,
        described: Described,
    ) -> None:
        pause_s = _FIRST_READ_AGAIN_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                readable = await self._readable(cluster)
                if readable == namespaces:
                    await mirror.read()
                    await described.read()
            except MeshError as exc:
                logger.warning("cannot read the cluster, trying again: %s", exc)
                pause_s = _FIRST_READ_AGAIN_S
                continue
            if readable != namespaces:
                now, before = ", ".join(readable), ", ".join(namespaces)
                raise MeshError(f"the namespaces that may be read are {now}, and were {before}")
            pause_s = _READ_AGAIN_S

    def _on_object(self, kind: str, body: Mapping[str, Any], gone: bool) -> None:
        if kind in KINDS:
            if self.mirror is not None:
                self.mirror.on_object(kind, body, gone)
        elif self._described is not None:
            self._described.on_object(kind, body, gone)

    def _on_resources(self, changed: Sequence[ResourceKey]) -> None:
        if self.mirror is not None:
            self.mirror.on_resources(changed)

    def _on_things(self, changed: Sequence[ThingKey]) -> None:
        if self.mirror is not None:
            self.mirror.on_things(changed)


async def identity(bus: Bus) -> str:
    """What names the mesh's store: one that is made anew has another."""
    bucket = bus.transport.key_value(RESOURCES)
    while True:
        known = await _known_identity(bus)
        if known:
            return known
        made = secrets.token_hex(6)
        try:
            await bucket.put(_IDENTITY, made.encode(), expected=0)
        except Conflict:
            continue
        return made


async def _known_identity(bus: Bus) -> str:
    """What names it; empty if nothing does yet."""
    entry = await bus.transport.key_value(RESOURCES).get(_IDENTITY)
    return entry.value.decode("ascii", "replace") if entry is not None else ""


async def _until_lost(mirror: Mirror) -> None:
    await mirror.lost.wait()
    raise MeshError("the mesh has lost its store: what is missing there is applied again")


def own_namespace() -> str:
    """The namespace of the pod that we run in, else `default`."""
    try:
        return _OWN_NAMESPACE.read_text().strip() or "default"
    except OSError:
        return "default"


def _leaves(group: BaseExceptionGroup[MeshError]) -> list[MeshError]:
    found: list[MeshError] = []
    for one in group.exceptions:
        found += _leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found


def _told(error: MeshError) -> str:
    if isinstance(error, NotFound):
        return f"{error}: does the cluster have our CustomResourceDefinitions (deploy/crds)?"
    return str(error)
