"""What the terminal shows: answers on standard output, everything about them on standard error."""

import json
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WHOLE = 4000


@cache
def out() -> "Console":
    """Where what was asked for goes."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


@cache
def err() -> "Console":
    """Where what is worth knowing besides goes."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def print_table(shown: "RenderableType", *, wide: bool = False) -> None:
    """Show rows; where nobody sees a screen, or they are to be whole, none is folded."""
    console = out()
    if console.is_terminal and not wide:
        console.print(shown)
        return
    seen, console.width = console.width, _WHOLE
    try:
        console.print(shown, crop=False)
    finally:
        console.width = seen


@contextmanager
def repainting(*, below: str = "") -> Generator[Callable[["RenderableType"], None]]:
    """Shows the same thing anew in its place; where nobody sees a screen, whenever it differs.

    Args:
        below: What stands under it on the screen.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    console = out()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            rest = [Text(below, "dim")] if below else []
            yield lambda shown: live.update(Group(shown, *rest), refresh=True)
        return
    before = ""

    def show(shown: "RenderableType") -> None:
        nonlocal before
        with console.capture() as capture:
            print_table(shown)
        if (text := capture.get()) != before:
            before = text
            sys.stdout.write(text)
            sys.stdout.flush()

    yield show


def fail(sentence: str) -> None:
    """Say what went wrong, in one line."""
    from rich.text import Text

    err().print(Text.assemble(("lmos: ", "bold red"), sentence), soft_wrap=True)


def print_json(value: Any, *, compact: bool = False) -> None:
    """Print data for a program to read."""
    indent = None if compact else 2
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")
    sys.stdout.flush()


def plural(count: int, word: str) -> str:
    """`1 agent`, `2 agents`, `2 processes`."""
    if count == 1:
        return f"{count} {word}"
    return f"{count} {word}es" if word.endswith("s") else f"{count} {word}s"


def either(names: Iterable[str], nothing: str = "none") -> str:
    """Names in one line."""
    return ", ".join(names) or nothing
