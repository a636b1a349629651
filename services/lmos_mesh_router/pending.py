"""An agent on its way into the index: what is embedded of it, and what comes next. Pure."""

from dataclasses import dataclass, field

from lmos_mesh.things import Thing
from lmos_mesh_router.evidence import Evidence, Floats

LAST_STAGE = 2
"""Of those by which `most_telling_first` orders evidence."""


@dataclass(eq=False)
class Pending:
    """An agent whose evidence is being embedded.

    Attributes:
        thing: What it is now; None if it is gone.
        staged: Its evidence, what is most telling first.
        vectors: What is embedded of it.
        at: How far that is.
        shown: The stage that the index has of it; -1 for nothing.
        recalled: Whether it was looked up what had been embedded before.
    """

    thing: Thing | None
    staged: list[tuple[int, Evidence]] = field(default_factory=list[tuple[int, Evidence]])
    vectors: dict[str, Floats] = field(default_factory=dict[str, Floats])
    at: int = 0
    shown: int = -1
    recalled: bool = False

    @property
    def stage(self) -> int:
        """The first stage that is not whole; one more than the last if all are."""
        return self.staged[self.at][0] if self.at < len(self.staged) else LAST_STAGE + 1

    @property
    def ready(self) -> list[Evidence]:
        """What is embedded of it, in order."""
        return [one for _, one in self.staged[: self.at]]

    def advance(self) -> None:
        """Go as far as vectors are there."""
        while self.at < len(self.staged) and self.staged[self.at][1].text in self.vectors:
            self.at += 1
