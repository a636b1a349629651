"""`lmos logs`: what the processes of a mesh have logged."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from lmos_mesh.cli.log_lines import read_line, shown
from lmos_mesh.cli.screen import either, err, out, print_json
from lmos_mesh.errors import NotFound
from lmos_mesh.mesh_state import (
    MeshPlace,
    find_mesh,
    known_meshes,
    place_of,
    running_meshes,
)

_POLL_S = 0.15
_BLOCK = 64 * 1024
_COLOURS = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green")


def logs(names: Sequence[str], *, follow: bool, lines: int, as_json: bool, mesh: str | None) -> int:
    """Print the last lines of each log, and go on if wanted."""
    place = _place(mesh)
    tails = _chosen(place, names)
    show = _show_json if as_json else _show_with(tails)
    for tail in tails:
        for line in tail.last(lines):
            show(tail.name, line)
    with suppress(KeyboardInterrupt):
        while follow:
            tails = _with_new(tails, place, names)
            for tail in tails:
                for line in tail.new():
                    show(tail.name, line)
            time.sleep(_POLL_S)
    return 0


def _place(mesh: str | None) -> MeshPlace:
    """Whose logs: those of a mesh that has ended can be read too."""
    if mesh is not None:
        place = place_of(mesh)
        if not place.log_dir.is_dir():
            known = either(one.name for one in known_meshes())
            raise NotFound(f"mesh {mesh!r} has no logs here", hint=f"meshes with logs: {known}")
        return place
    if not running_meshes():
        logged = [one for one in known_meshes() if one.log_dir.is_dir()]
        if len(logged) == 1:
            err().print(f"[dim]mesh {logged[0].name} does not run; these are its last logs[/dim]")
            return logged[0]
        if logged:
            raise NotFound(
                "no mesh runs here",
                hint=f"the last logs of {either(one.name for one in logged)} are kept: "
                "lmos logs --mesh NAME",
            )
    return place_of(find_mesh(None).name)


def _chosen(place: MeshPlace, names: Sequence[str]) -> "list[_Tail]":
    there = sorted(path.stem for path in place.log_dir.glob("*.log"))
    if missing := [name for name in names if name not in there]:
        raise NotFound(
            f"no process called {missing[0]!r} has logged in mesh {place.name!r}",
            hint=f"there are {either(there, 'no logs')}",
        )
    return [_Tail(name, place.log_path(name)) for name in names or there]


def _with_new(tails: "list[_Tail]", place: MeshPlace, names: Sequence[str]) -> "list[_Tail]":
    """Logs that have come since, unless only some are wanted."""
    if names:
        return tails
    known = {tail.name for tail in tails}
    fresh = sorted(path.stem for path in place.log_dir.glob("*.log") if path.stem not in known)
    return [*tails, *(_Tail(name, place.log_path(name)) for name in fresh)]


def _show_json(name: str, raw: str) -> None:
    line = read_line(raw)
    print_json({"process": name, **(line.told or {"line": raw})}, compact=True)


def _show_with(tails: "Sequence[_Tail]") -> "_Show":
    return _Show(alone=len(tails) == 1, width=max((len(one.name) for one in tails), default=0))


@dataclass(slots=True)
class _Show:
    """Prints lines with the name of their process in front, unless there is one only."""

    alone: bool
    width: int

    def __call__(self, name: str, raw: str) -> None:
        text = shown(read_line(raw))
        if not self.alone:
            colour = _COLOURS[sum(name.encode()) % len(_COLOURS)]
            text = Text.assemble((f"{name.ljust(self.width)}  ", colour), text)
        out().print(text, soft_wrap=True)


@dataclass(slots=True)
class _Tail:
    """The end of one log, and what is added to it."""

    name: str
    path: Path
    _offset: int = 0
    _inode: int = 0
    _begun: bytes = b""

    def last(self, count: int) -> list[str]:
        """Its last lines; what is added later is new."""
        try:
            with self.path.open("rb") as file:
                self._inode = self.path.stat().st_ino
                size = file.seek(0, 2)
                at, text = size, b""
                while at > 0 and text.count(b"\n") <= count:
                    at = max(0, at - _BLOCK)
                    file.seek(at)
                    text = file.read(size - at)
        except OSError:
            return []
        self._offset = size
        *whole, self._begun = text.split(b"\n")
        return [line.decode(errors="replace") for line in whole[-count:]] if count else []

    def new(self) -> Iterator[str]:
        """The lines that were added since; a log that was begun anew is read from its start."""
        try:
            stat = self.path.stat()
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._offset, self._inode, self._begun = 0, stat.st_ino, b""
            if stat.st_size == self._offset:
                return
            with self.path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return
        self._offset += len(text)
        *whole, self._begun = (self._begun + text).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
