"""`lmos models`: the embedding model that the router uses."""

from pathlib import Path

from rich.text import Text

from lmos_mesh import models as store
from lmos_mesh.cli.screen import out, print_json


def show(*, as_json: bool) -> int:
    """Say which model is installed, and where."""
    folder = store.installed_model()
    if as_json:
        print_json({"model": store.MODEL_NAME, "path": str(folder) if folder else None})
    elif folder is not None:
        manifest = store.read_manifest(folder)
        size_mb = sum(record.size for record in manifest.files.values()) / 1e6
        out().print(Text.assemble(("✓ ", "green"), f"{store.MODEL_NAME} is installed"))
        out().print(
            Text(f"  {size_mb:.0f} MB in {folder}\n  from {manifest.source}", "dim"),
            soft_wrap=True,
        )
    else:
        out().print(Text.assemble(("! ", "yellow"), f"{store.MODEL_NAME} is not installed"))
        out().print(
            Text(
                "  the router compares words, not meaning, until it is: lmos models install", "dim"
            )
        )
    return 0


def install(*, source: Path | None, force: bool) -> int:
    """Get the model and prepare it."""
    with out().status("[dim]starting[/dim]") as status:

        def say(line: str) -> None:
            status.update(f"[dim]{line}[/dim]")
            if not out().is_terminal:
                out().print(line)

        folder = store.install_model(source=source, say=say, force=force)
    if out().is_terminal:
        out().print(
            Text.assemble(("✓ ", "green"), f"{store.MODEL_NAME} is installed in {folder}"),
            soft_wrap=True,
        )
    return 0
