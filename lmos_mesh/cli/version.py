"""`lmos version`: which versions are at work here."""

import platform
from importlib import metadata

from rich.table import Table

from lmos_mesh.cli.screen import out, print_json
from lmos_mesh.errors import MeshError
from lmos_mesh.nats_server import find_binary


def version(*, as_json: bool) -> int:
    """Print versions."""
    told = {
        "lmos-mesh": _installed("lmos-mesh"),
        "python": platform.python_version(),
        "nats-server": _nats_server(),
        "nats-py": _installed("nats-py"),
    }
    if as_json:
        print_json(told)
        return 0
    table = Table.grid(padding=(0, 2))
    for name, said in told.items():
        table.add_row(name, said or "[dim]not found[/dim]")
    out().print(table)
    return 0


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _nats_server() -> str | None:
    try:
        return find_binary().version
    except MeshError:
        return None
