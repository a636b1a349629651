"""What the terminal shows: answers on standard output, everything about them on standard error."""

import json
import sys
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


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
