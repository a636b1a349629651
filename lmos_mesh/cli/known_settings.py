"""Which `LMOS_*` variables mean something, read from the sources without running them.

A settings class is known by its name; everything else by the variable's name as a string. So the
settings of a service count although the command line must not import it.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from lmos_mesh.programs import PROTOCOLS, SERVICES, packages_of

_PREFIX = "LMOS_"
# Nothing that is installed reads it; the tests and benchmarks of a checkout do.
_OF_CHECKOUTS = ("LMOS_BENCH_DATA",)
_VARIABLE = re.compile(r"LMOS_[A-Z0-9_]*[A-Z0-9]\Z")


def known_settings() -> frozenset[str]:
    """Every variable that some part of the mesh reads."""
    found: set[str] = set(_OF_CHECKOUTS)
    for package in ("lmos_mesh", *packages_of(SERVICES), *packages_of(PROTOCOLS)):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for source in Path(folder).rglob("*.py"):
                found.update(settings_in(source.read_text(errors="replace")))
    return frozenset(found)


def settings_in(source: str) -> set[str]:
    """The variables that a module reads."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            found.update(
                _PREFIX + statement.target.id.upper()
                for statement in node.body
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            )
        elif isinstance(node, ast.Constant) and _VARIABLE.match(str(node.value)):
            found.add(str(node.value))
    return found


def unknown_settings(environ: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """The variables that nobody reads, each with the one that was probably meant, or ''."""
    listed = sorted(known)
    return {
        name: next(iter(difflib.get_close_matches(name, listed, n=1, cutoff=0.75)), "")
        for name in sorted(environ)
        if name.startswith(_PREFIX) and name not in listed
    }
