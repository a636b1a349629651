"""Prints what pip must install for lmos-mesh and some of its extras, one requirement per line.

So an image has a layer of dependencies that a change of our own code leaves alone. Standard
library only: it runs before anything is installed.

    python requirements.py pyproject.toml router,http
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def requirements(project: Mapping[str, Any], extras: Sequence[str]) -> Iterator[str]:
    """The requirements of a project with these extras; those that name itself are followed.

    Raises:
        ValueError: It has no such extra.
    """
    offered: Mapping[str, list[str]] = project.get("optional-dependencies", {})
    own = re.compile(rf"{re.escape(project['name'])}\[(?P<extras>[^]]+)\]$")
    yield from project.get("dependencies", ())
    for extra in extras:
        if extra not in offered:
            raise ValueError(f"no extra is called {extra!r}; there are {', '.join(offered)}")
        for requirement in offered[extra]:
            if itself := own.match(requirement):
                inner = [one.strip() for one in itself["extras"].split(",")]
                yield from requirements({**project, "dependencies": ()}, inner)
            else:
                yield requirement


def main() -> None:
    """Print them."""
    try:
        _, path, extras = sys.argv
        project = tomllib.loads(Path(path).read_text())["project"]
        wanted = [one.strip() for one in extras.split(",") if one.strip()]
        sys.stdout.write("".join(f"{one}\n" for one in requirements(project, wanted)))
    except (ValueError, OSError) as exc:
        sys.exit(f"requirements.py PYPROJECT EXTRAS: {exc}")


if __name__ == "__main__":
    main()
