"""`lmos crds`: the resources as Kubernetes' definitions, or as JSON Schemas for an editor."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmos_mesh.cli.screen import out
from lmos_mesh.cli.yaml_text import yaml_text
from lmos_mesh.errors import NotFound
from lmos_mesh.resource_schemas import crd, json_schema
from lmos_mesh.resources import KINDS, kind_named


def crds(kinds: Sequence[str], *, schemas: bool, as_json: bool, into: Path | None) -> int:
    """Print definitions, or write each to a file of a folder."""
    chosen = [known_kind(word) for word in kinds] or list(KINDS)
    if into is None:
        _print([_made(kind, schemas=schemas) for kind in chosen], as_json=as_json or schemas)
        return 0
    into.mkdir(parents=True, exist_ok=True)
    for kind in chosen:
        path = into / file_name(kind, schemas=schemas)
        path.write_text(file_text(kind, schemas=schemas), "utf-8")
        out().print(str(path))
    return 0


def file_name(kind: str, *, schemas: bool) -> str:
    """What the file of a kind is called."""
    return f"{kind.lower()}.json" if schemas else f"{KINDS[kind].plural}.yaml"


def file_text(kind: str, *, schemas: bool) -> str:
    """What is in it."""
    made = _made(kind, schemas=schemas)
    return json.dumps(made, ensure_ascii=False, indent=2) + "\n" if schemas else yaml_text(made)


def known_kind(word: str) -> str:
    """The kind that a word means.

    Raises:
        NotFound: It means none.
    """
    if (kind := kind_named(word)) is None:
        known = ", ".join(f"{model.plural} ({model.short})" for model in KINDS.values())
        raise NotFound(f"no kind of resource is called {word!r}", hint=f"there are {known}")
    return kind


def _made(kind: str, *, schemas: bool) -> dict[str, Any]:
    return json_schema(kind) if schemas else crd(kind)


def _print(made: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    # Not through the console, which would fold lines.
    if as_json:
        whole = made[0] if len(made) == 1 else made
        print(json.dumps(whole, ensure_ascii=False, indent=2))  # noqa: T201
    else:
        print("---\n".join(map(yaml_text, made)), end="")  # noqa: T201
