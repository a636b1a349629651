"""`lmos delete`: resources by name, and whatever files describe."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.cli.apply import tenant_of
from lmos_mesh.cli.connection import answering, asking, connected, run
from lmos_mesh.cli.manifests import Manifest, Refused, read_manifests
from lmos_mesh.cli.outcomes import show_refused
from lmos_mesh.cli.resource_calls import Target, named_targets
from lmos_mesh.cli.screen import err, out, print_json
from lmos_mesh.description import thing_of, with_security
from lmos_mesh.errors import InvalidMessage, NotFound
from lmos_mesh.messages import DELETE_RESOURCE, DEREGISTER, DeleteResource, Deregister
from lmos_mesh.resources import DEFAULT_NAMESPACE, ChannelRouting


def delete(
    words: Sequence[str],
    *,
    files: Sequence[str] = (),
    namespace: str | None = None,
    tenant: str | None = None,
    ignore_missing: bool = False,
    as_json: bool = False,
    mesh: str | None = None,
) -> int:
    """Delete resources by name, or everything that files describe; 1 if anything is not there."""
    if bool(words) == bool(files):
        raise InvalidMessage("what shall be deleted?", hint="say KIND NAME, KIND/NAME or -f FILE")
    refused: list[Refused] = []
    if files:
        found, refused = read_manifests(files)
        deleted, missing = ([], []) if refused else run(_of_files(found, namespace, tenant, mesh))
    else:
        deleted, missing = run(_named(named_targets(words), namespace, tenant, mesh))
    if as_json:
        print_json(
            {
                "deleted": deleted,
                "missing": missing,
                "refused": [one.as_json() for one in refused],
            }
        )
    else:
        for one in deleted:
            also = f" and {', '.join(one['also'])}" if one["also"] else ""
            line = Text.assemble(("deleted   ", "red"), f"{one['kind']} ", (one["name"], "bold"))
            out().print(line.append(also))
        for one in () if ignore_missing else missing:
            err().print(Text(f"there is no {one['kind']} {one['name']}", "dim"))
        show_refused(refused)
    return 1 if refused or (missing and not ignore_missing) else 0


async def _named(
    targets: Sequence[Target], namespace: str | None, tenant: str | None, mesh: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    deleted: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    async with connected(mesh) as bus:
        for one in targets:
            name = one.name or ""
            space = namespace or DEFAULT_NAMESPACE
            await _delete(bus, one.kind, name, space, tenant or bus.tenant, deleted, missing)
    return deleted, missing


async def _of_files(
    found: Sequence[Manifest], namespace: str | None, tenant: str | None, mesh: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    deleted: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    done: set[tuple[str, str, str]] = set()
    async with connected(mesh) as bus:
        # What needs others goes before them.
        for one in reversed(found):
            whose = tenant_of(one, found, tenant=tenant or bus.tenant, asked=tenant)
            if one.resource is None:
                await _deregister(bus, one, whose, deleted, missing)
                continue
            if isinstance(one.resource, ChannelRouting):
                continue  # it goes with its Channel
            metadata = one.resource.metadata
            key = (one.kind, namespace or metadata.namespace, metadata.name)
            if key not in done:
                done.add(key)
                await _delete(bus, one.kind, metadata.name, key[1], whose, deleted, missing)
    return deleted, missing


async def _delete(
    bus: Bus,
    kind: str,
    name: str,
    namespace: str,
    tenant: str,
    deleted: list[dict[str, Any]],
    missing: list[dict[str, Any]],
) -> None:
    wanted = DeleteResource(kind=kind, name=name, namespace=namespace)
    told: dict[str, Any] = {"kind": kind, "namespace": namespace, "name": name}
    try:
        async with answering("operator"):
            gone = await bus.call(
                DELETE_RESOURCE, wanted, tenant=tenant, headers=asking(bus), nobody_s=RESTART_S
            )
    except NotFound:
        missing.append(told)
    else:
        deleted.append({**told, "also": list(gone.also)})


async def _deregister(
    bus: Bus,
    one: Manifest,
    tenant: str,
    deleted: list[dict[str, Any]],
    missing: list[dict[str, Any]],
) -> None:
    own = {name: value for name, value in one.value.items() if name != "registration"}
    thing = thing_of(with_security(own)[0], tenant=tenant)
    told: dict[str, Any] = {"kind": thing.kind, "namespace": "", "name": thing.name}
    try:
        async with answering("registry"):
            wanted = Deregister(name=thing.name, subset=thing.subset)
            await bus.call(
                DEREGISTER, wanted, tenant=tenant, headers=asking(bus), nobody_s=RESTART_S
            )
    except NotFound:
        missing.append(told)
    else:
        deleted.append({**told, "also": []})
