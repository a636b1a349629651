"""At which lines of a JSON or YAML file the members of its documents are. Pure."""

import json
import re
from collections.abc import Callable
from functools import cached_property

from lmos_mesh.cli.yaml_reading import Marked, YamlFault, yaml_documents

_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class Lines:
    """The lines of one document, looked up when they are asked for: most never are.

    Args:
        find: Where the document is; None if that is not known.
        below: The members on the way to the part that this is about.
    """

    def __init__(
        self, find: Callable[[], Marked | None] = lambda: None, *, below: tuple[str, ...] = ()
    ) -> None:
        self._find = find
        self._below = below

    @cached_property
    def _marked(self) -> Marked | None:
        found = self._find()
        for step in self._below:
            found = found.members.get(step) if found is not None else None
        return found

    def at(self, pointer: str) -> int | None:
        """The line of a JSON Pointer, or of what a missing member should be in; None if unknown."""
        marked = self._marked
        if marked is None:
            return None
        for step in pointer.split("/")[1:]:
            inner = marked.members.get(step.replace("~1", "/").replace("~0", "~"))
            if inner is None:
                break
            marked = inner
        return marked.line

    def below(self, *steps: str) -> "Lines":
        """The lines of a part of the document, as those of a document."""
        return Lines(lambda: self._marked, below=steps)


def lines_in_json(text: str) -> list[Marked]:
    """Where the documents of a JSON file are; an array at its top holds several.

    What cannot be read has no lines.
    """
    # JSON is YAML, apart from tabs between its members; inside of its strings there are none.
    # And of letters that are escaped as two, which libyaml does not know.
    plain = _PAIR.sub(lambda found: str(json.loads(f'"{found[0]}"')), text.replace("\t", " "))
    try:
        found = list(yaml_documents(plain))
    except YamlFault:
        return []
    if len(found) == 1 and isinstance(found[0][0], list):
        return list(found[0][1].members.values())
    return [marked for _, marked in found]
