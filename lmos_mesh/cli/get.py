"""`lmos get`: the resources that were applied, and what became of them."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from lmos_mesh.bus import Bus
from lmos_mesh.cli.connection import connected, run
from lmos_mesh.cli.resource_calls import Raw, Target, changes, got, labels_of, listed, targets_of
from lmos_mesh.cli.resource_tables import Around, place_of, table_of
from lmos_mesh.cli.screen import out, print_json, print_table, repainting
from lmos_mesh.cli.yaml_text import yaml_text
from lmos_mesh.errors import MeshError, NotFound
from lmos_mesh.resources import KINDS

Output = Literal["yaml", "json", "wide", "name"]


def get(
    words: Sequence[str],
    *,
    namespace: str | None = None,
    tenant: str | None = None,
    labels: Sequence[str] = (),
    output: Output | None = None,
    watch: bool = False,
    mesh: str | None = None,
) -> int:
    """Show resources, once or whenever they change until Ctrl-C."""
    targets = targets_of(words)
    wanted = labels_of(labels)

    async def found(bus: Bus) -> list[Raw]:
        return await _found(bus, targets, namespace=namespace, tenant=tenant, labels=wanted)

    async def once() -> tuple[list[Raw], Around]:
        async with connected(mesh) as bus:
            chosen = await found(bus)
            return chosen, await around(bus, chosen, tenant=tenant)

    async def always() -> None:
        async with connected(mesh) as bus, changes(bus) as changed:
            if output in ("json", "yaml", "name"):
                seen: dict[tuple[str, ...], str] = {}
                while True:
                    with suppress(NotFound):
                        _tell_changes(await found(bus), seen, output)
                    await changed.wait()
            with repainting(below="Ctrl-C ends it") as show:
                while True:
                    try:
                        chosen = await found(bus)
                        about = await around(bus, chosen, tenant=tenant)
                        show(_tables(targets, chosen, about, wide=output == "wide"))
                    except MeshError as exc:
                        show(Text(str(exc), "red"))
                    await changed.wait()

    if watch:
        with suppress(KeyboardInterrupt):
            run(always())
        return 0
    chosen, about = run(once())
    if output == "json":
        alone = len(targets) == 1 and targets[0].name is not None
        print_json(chosen[0] if alone else chosen)
    elif output == "yaml":
        sys.stdout.write("---\n".join(map(yaml_text, chosen)))
    elif output == "name":
        for one in chosen:
            out().print(_short_name(one), soft_wrap=True)
    else:
        shown = _tables(targets, chosen, about, wide=output == "wide")
        print_table(shown, wide=output == "wide")
    return 0


async def around(bus: Bus, found: Sequence[Raw], *, tenant: str | None) -> Around:
    """What the rows of these resources speak of besides."""
    routings: list[Raw] = []
    if any(one["kind"] == "Channel" for one in found):
        routings = await listed(bus, "ChannelRouting", tenant=tenant)
    return Around(routings={place_of(one): one for one in routings}, now=time.time())


async def _found(
    bus: Bus,
    targets: Sequence[Target],
    *,
    namespace: str | None,
    tenant: str | None,
    labels: Mapping[str, str],
) -> list[Raw]:
    found: list[Raw] = []
    for one in targets:
        if one.name is not None:
            found.append(await got(bus, one, namespace=namespace, tenant=tenant))
        else:
            found += await listed(bus, one.kind, namespace=namespace, labels=labels, tenant=tenant)
    return found


def _tables(
    targets: Sequence[Target], found: Sequence[Raw], about: Around, *, wide: bool
) -> RenderableType:
    kinds = list(dict.fromkeys(one.kind for one in targets))
    shown: list[RenderableType] = []
    for kind in kinds:
        rows = [one for one in found if one["kind"] == kind]
        if not rows:
            if len(kinds) == 1:
                shown.append(Text(f"There are no {KINDS[kind].plural}.{_hint(kind)}", "dim"))
            continue
        if len(kinds) > 1:
            shown.append(Text(("\n" if shown else "") + KINDS[kind].plural, "bold cyan"))
        shown.append(table_of(kind, rows, about, wide=wide))
    return Group(*shown) if shown else Text("There are no resources.", "dim")


def _hint(kind: str) -> str:
    if kind == "Channel":
        return " Every live agent answers on the channels that it serves."
    if kind == "Agent":
        return " Those that are running are shown by `lmos agents`."
    return ""


def _short_name(one: Raw) -> str:
    return f"{KINDS[one['kind']].plural.removesuffix('s')}/{one['metadata']['name']}"


def _tell_changes(found: Sequence[Raw], seen: dict[tuple[str, ...], str], output: Output) -> None:
    """Print what is new or different, and say what is gone; one line of JSON for each."""
    there: dict[tuple[str, ...], str] = {}
    for one in found:
        key = (one["kind"], *place_of(one))
        there[key] = one["metadata"].get("resourceVersion", "")
        if seen.get(key) != there[key]:
            _tell(one, output)
    for kind, namespace, name in seen.keys() - there.keys():
        gone: dict[str, Any] = {
            "kind": kind,
            "metadata": {"namespace": namespace, "name": name},
            "gone": True,
        }
        _tell(gone, output)
    seen.clear()
    seen.update(there)


def _tell(one: Raw, output: Output) -> None:
    if output == "json":
        text = json.dumps(one, ensure_ascii=False) + "\n"
    elif output == "yaml":
        text = "---\n" + yaml_text(one)
    else:
        text = _short_name(one) + (" is gone\n" if one.get("gone") else "\n")
    sys.stdout.write(text)
    sys.stdout.flush()
