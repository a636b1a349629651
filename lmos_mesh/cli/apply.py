"""`lmos apply`: what people have written by hand becomes part of the mesh.

Everything is checked before anything is applied, and every fault of every file is named. What can
still go wrong in the middle of the work ends it there: what was applied stays, and is told.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from rich.text import Text

from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.cli.connection import answering, asking, connected, run
from lmos_mesh.cli.differing import difference
from lmos_mesh.cli.manifests import Manifest, Refused, channels_of, clashes, read_manifests
from lmos_mesh.cli.outcomes import (
    Applied,
    Outcome,
    name_of,
    report_of,
    show,
    show_extent,
    show_refused,
)
from lmos_mesh.cli.registering import register
from lmos_mesh.cli.screen import err, fail, plural, print_json
from lmos_mesh.errors import MeshError, SettingsError
from lmos_mesh.json_faults import Fault, pointer, quoted
from lmos_mesh.messages import APPLY_RESOURCE, ApplyResource
from lmos_mesh.resources import (
    TENANT_LABEL,
    Agent,
    Channel,
    ChannelRollout,
    ChannelRouting,
    Resource,
)

_CHECKED_AT_ONCE = 16
_MANY = 200
_LEFT_OUT = "the operator makes Routings, of Channels; this one is left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What holds for all documents of one command.

    Attributes:
        tenant: Whom they are for where they do not say so.
        asked: Whom they have to be for; None if they may say so.
    """

    tenant: str
    asked: str | None
    ttl_s: float | None
    dry_run: bool
    diff: bool


def apply(
    files: Sequence[str],
    *,
    ttl_s: float | None,
    tenant: str | None,
    namespace: str | None = None,
    dry_run: bool = False,
    diff: bool = False,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Apply the documents of files and folders; 1 if any is refused."""
    if ttl_s is not None and not 0 < ttl_s < math.inf:
        raise SettingsError(
            f"--ttl {ttl_s:g} is no time to live", hint="give a number of seconds above 0"
        )
    if not files:
        raise SettingsError("there is nothing to apply", hint="name files or folders: -f FILE")
    found, refused = read_manifests(files)
    placed = [_placed(one, namespace=namespace, tenant=tenant) for one in found]
    refused.extend(one for one in placed if isinstance(one, Refused))
    outcome = Outcome(refused=refused)
    if not refused:
        ready = [one for one in placed if isinstance(one, Manifest)]
        outcome = run(
            _apply(ready, ttl_s=ttl_s, tenant=tenant, dry_run=dry_run, diff=diff, mesh=mesh)
        )
    if as_json:
        print_json(
            {
                "applied": [report_of(one, diff=diff) for one in outcome.applied],
                "refused": [one.as_json() for one in outcome.refused],
                "not_applied": [name_of(one) for one in outcome.ahead],
                "dry_run": dry_run,
            }
        )
        return 1 if outcome.refused else 0
    for one in outcome.applied:
        show(one, dry_run=dry_run)
    show_refused(outcome.refused)
    if outcome.refused and not dry_run:
        show_extent(outcome)
    return 1 if outcome.refused else 0


def tenant_of(one: Manifest, found: Sequence[Manifest], *, tenant: str, asked: str | None) -> str:
    """Whose resource it is: as its label says, else as was asked, else as what it speaks of."""
    match one.resource:
        case Agent() as agent:
            known = agent.spec.supported_tenants
            return asked or (tenant if not known or tenant in known else known[0])
        case ChannelRollout() as rollout if not rollout.tenant and asked is None:
            namespace = rollout.metadata.namespace
            named = {name for _, pair in channels_of(rollout) for name in pair}
            for other in found:
                channel = other.resource
                if (
                    isinstance(channel, Channel)
                    and channel.metadata.namespace == namespace
                    and channel.metadata.name in named
                ):
                    return channel.tenant or tenant
            return tenant
        case Resource() as resource:
            return resource.tenant or asked or tenant
        case _:
            return asked or tenant


def faults_in(exc: MeshError) -> list[Fault]:
    """What was found wrong with a document, by whoever refused it."""
    told = cast("list[Fault]", exc.details.get("faults") or [])
    # Faults of the question are beneath the member that holds the document.
    own = [
        {**fault, "field": fault.get("field", "").removeprefix("/resource")}
        for fault in told
        if fault.get("description")
    ]
    return own or [{"field": str(exc.details.get("field", "")), "description": str(exc)}]


def _placed(one: Manifest, *, namespace: str | None, tenant: str | None) -> Manifest | Refused:
    """The document in the namespace that was asked for."""
    if one.resource is None:
        return one
    label = one.resource.tenant
    if tenant and label and label != tenant:
        said = f"is {quoted(label)}, and --tenant says {quoted(tenant)}"
        return one.refused(
            [{"field": pointer("metadata", "labels", TENANT_LABEL), "description": said}]
        )
    if namespace is None:
        return one
    metadata = cast("Mapping[str, Any]", one.value["metadata"])
    own = metadata.get("namespace")
    if own not in (None, namespace):
        said = f"is {quoted(own)}, and --namespace says {quoted(namespace)}"
        return one.refused([{"field": "/metadata/namespace", "description": said}])
    value = {**one.value, "metadata": {**metadata, "namespace": namespace}}
    resource = one.resource.model_copy(
        update={"metadata": one.resource.metadata.model_copy(update={"namespace": namespace})}
    )
    return replace(one, value=value, resource=resource)


async def _apply(
    found: Sequence[Manifest],
    *,
    ttl_s: float | None,
    tenant: str | None,
    dry_run: bool,
    diff: bool,
    mesh: str | None,
) -> Outcome:
    async with connected(mesh) as bus:
        terms = _Terms(
            tenant=tenant or bus.tenant, asked=tenant, ttl_s=ttl_s, dry_run=dry_run, diff=diff
        )
        # Now that it is known whose and where they are.
        if refused := list(clashes(found, tenant=terms.tenant)):
            return Outcome(refused=refused)
        if dry_run:
            return await _check_all(bus, found, terms)
        if len(found) > 1:
            # What the operator refuses is known before anything is changed.
            checked = await _check_all(bus, found, replace(terms, dry_run=True, diff=False))
            if checked.refused:
                return Outcome(refused=checked.refused)
        return await _apply_all(bus, found, terms)


async def _check_all(bus: Bus, found: Sequence[Manifest], terms: _Terms) -> Outcome:
    """What would become of all of them; nothing is changed."""
    turns = asyncio.Semaphore(_CHECKED_AT_ONCE)
    _say_many("checking", found)

    async def checked(one: Manifest) -> Applied | Refused | MeshError:
        async with turns:
            try:
                return await _apply_one(bus, one, found, terms)
            except MeshError as exc:
                # Not raised here: what ends a group of tasks is told as a group of errors.
                return exc if exc.retryable else one.refused(faults_in(exc))

    try:
        async with asyncio.TaskGroup() as tasks:
            begun = [tasks.create_task(checked(one)) for one in found]
    except asyncio.CancelledError:
        fail("stopped: nothing is applied")
        raise
    results = [one.result() for one in begun]
    for one in results:
        if isinstance(one, MeshError):
            raise one
    return Outcome(
        applied=[one for one in results if isinstance(one, Applied)],
        refused=[one for one in results if isinstance(one, Refused)],
    )


async def _apply_all(bus: Bus, found: Sequence[Manifest], terms: _Terms) -> Outcome:
    """Apply one after the other, as far as that goes: what comes later may need what is refused."""
    applied: list[Applied] = []
    _say_many("applying", found)
    for number, one in enumerate(found):
        try:
            applied.append(await _apply_one(bus, one, found, terms))
        except asyncio.CancelledError:
            # What was on its way may have arrived.
            fail(
                f"stopped: of {plural(len(found), 'document')} {len(applied)} are applied, perhaps "
                "the next one, too, and stay"
            )
            raise
        except MeshError as exc:
            faults = faults_in(exc)
            if exc.retryable:
                if not applied:
                    raise
                said = f"{exc}; whether it was applied is not known"
                faults = [{"field": "", "description": said}]
            return Outcome(
                applied=applied, refused=[one.refused(faults)], ahead=found[number + 1 :]
            )
    return Outcome(applied=applied)


async def _apply_one(bus: Bus, one: Manifest, found: Sequence[Manifest], terms: _Terms) -> Applied:
    if isinstance(one.resource, ChannelRouting):
        return _left_out(one, one.resource)
    if one.resource is None:
        async with answering("registry"):
            return await register(
                bus,
                one,
                tenant=terms.tenant,
                ttl_s=terms.ttl_s,
                dry_run=terms.dry_run,
                diff=terms.diff,
            )
    whose = tenant_of(one, found, tenant=terms.tenant, asked=terms.asked)
    beside = _beside(one.resource, found) if terms.dry_run else ()
    async with answering("operator"):
        return await _apply_resource(bus, one, one.resource, whose, terms, beside)


def _beside(resource: Resource, found: Sequence[Manifest]) -> tuple[dict[str, Any], ...]:
    """Of a rollout, the Channels that these documents have of it: they will be there before it."""
    if not isinstance(resource, ChannelRollout):
        return ()
    named = {name for _, pair in channels_of(resource) for name in pair}
    return tuple(
        dict(other.value)
        for other in found
        if isinstance(other.resource, Channel)
        and other.resource.metadata.name in named
        and other.resource.metadata.namespace == resource.metadata.namespace
    )


async def _apply_resource(
    bus: Bus,
    one: Manifest,
    resource: Resource,
    tenant: str,
    terms: _Terms,
    beside: tuple[dict[str, Any], ...],
) -> Applied:
    wanted = ApplyResource(resource=dict(one.value), dry_run=terms.dry_run, beside=beside)
    kept = await bus.call(
        APPLY_RESOURCE, wanted, tenant=tenant, headers=asking(bus), nobody_s=RESTART_S
    )
    name = f"{kept.kind} {kept.name}"
    return Applied(
        where=one.where,
        kind=kept.kind,
        name=kept.name,
        subset=resource.subset,
        tenant=tenant,
        namespace=kept.namespace,
        what=kept.what,
        revision=kept.revision,
        notes=(*one.notes, *kept.notes),
        diff=difference(kept.before, kept.after, name=name) if terms.diff else "",
    )


def _left_out(one: Manifest, resource: ChannelRouting) -> Applied:
    # They come along when everything that there is was read, and in the examples of LMOS.
    metadata = resource.metadata
    return Applied(
        where=one.where,
        kind=one.kind,
        name=metadata.name,
        subset=resource.subset,
        tenant=resource.tenant,
        namespace=metadata.namespace,
        what="left out",
        revision=0,
        notes=(*one.notes, _LEFT_OUT),
    )


def _say_many(doing: str, found: Sequence[Manifest]) -> None:
    """Say what takes a while, to somebody who waits for it."""
    if len(found) >= _MANY and err().is_terminal:
        err().print(Text(f"{doing} {len(found)} documents…", "dim"))
