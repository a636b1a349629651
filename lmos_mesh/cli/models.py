"""`lmos models`: the embedding model that the router uses."""

from pathlib import Path

from rich.text import Text

from lmos_mesh import models as store
from lmos_mesh.cli.screen import out, print_json
from lmos_mesh.eight_bits import install_eight_bits, installed_eight_bits


def show(*, as_json: bool) -> int:
    """Say which model is installed, and where."""
    folder = store.installed_model()
    small = installed_eight_bits(folder) if folder else None
    if as_json:
        print_json(
            {
                "model": store.MODEL_NAME,
                "path": str(folder) if folder else None,
                "int8": str(small) if small else None,
            }
        )
    elif folder is not None:
        manifest = store.read_manifest(folder)
        size_mb = sum(record.size for record in manifest.files.values()) / 1e6
        out().print(Text.assemble(("✓ ", "green"), f"{store.MODEL_NAME} is installed"))
        out().print(
            Text(f"  {size_mb:.0f} MB in {folder}\n  from {manifest.source}", "dim"),
            soft_wrap=True,
        )
        if small is not None:
            out().print(Text("  also with weights of eight bits: LMOS_ROUTER_ENCODER=int8", "dim"))
    else:
        out().print(Text.assemble(("! ", "yellow"), f"{store.MODEL_NAME} is not installed"))
        out().print(
            Text(
                "  the router compares words, not meaning, until it is: lmos models install", "dim"
            )
        )
    return 0


def install(*, source: Path | None, force: bool, int8: bool = False) -> int:
    """Get the model and prepare it."""
    with out().status("[dim]starting[/dim]") as status:

        def say(line: str) -> None:
            status.update(f"[dim]{line}[/dim]")
            if not out().is_terminal:
                out().print(line)

        # To make the int8 model anew, the model itself need not be fetched anew.
        anew = force and not (int8 and store.installed_model() and source is None)
        folder = store.install_model(source=source, say=say, force=anew)
        if int8:
            install_eight_bits(folder, say=say, force=force)
    if out().is_terminal:
        out().print(
            Text.assemble(("✓ ", "green"), f"{store.MODEL_NAME} is installed in {folder}"),
            soft_wrap=True,
        )
    return 0
