"""When a process that has crashed is started again. Pure."""

from dataclasses import dataclass

STEADY_S = 30.0
"""A process that lived for this long has recovered: its next crash counts as its first."""

LOOPING_AFTER = 5
"""So many crashes in a row are no accident, and the screen says so."""

_FIRST_S = 0.1
_LONGEST_S = 15.0


@dataclass(frozen=True, slots=True)
class Crashes:
    """How often a process has crashed without having recovered in between."""

    in_a_row: int = 0

    def one_more(self, *, lived_s: float) -> "Crashes":
        """After another crash, `lived_s` seconds after the start."""
        return Crashes(1 if lived_s >= STEADY_S else self.in_a_row + 1)

    @property
    def delay_s(self) -> float:
        """How long to wait before the next start: at first hardly, then twice as long each time."""
        return min(_LONGEST_S, _FIRST_S * 2.0 ** max(0, min(self.in_a_row, 16) - 1))

    @property
    def looping(self) -> bool:
        """Whether starting it again has turned out not to help."""
        return self.in_a_row >= LOOPING_AFTER
