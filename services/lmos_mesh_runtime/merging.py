"""Several answers as one text, whoever is the fastest and whoever begins anew. Pure."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class _Answer:
    """One agent's answer as it comes: (gap, heading, words), of which the first `kept` stay."""

    said: list[tuple[str, str, str]]
    heading: str = ""
    fresh: bool = True
    kept: int = 0
    ended: bool = False

    def text(self) -> str:
        return "".join([piece for said in self.said for piece in said])

    def words(self) -> str:
        return "".join([gap + words for gap, _, words in self.said])


Frames = list[tuple[str, Any]]
_GAP = "\n\n"
_PIECE = 100_000


class Merged:
    """Several answers as one text, each one's words together, in the order of the requests.

    The words of the first one that has not ended are passed on as they come, those of the others
    once it is their turn. What each call gives is what must be sent.
    """

    def __init__(self, count: int) -> None:
        self._answers = [_Answer([]) for _ in range(count)]
        self._at = 0
        self._begun = False  # whether words of the live answer were passed on
        self._any = False  # whether words of any answer were

    def named(self, at: int, heading: str) -> None:
        """What the next words of an answer stand under; what it said so far stays."""
        answer = self._answers[at]
        answer.heading, answer.fresh, answer.kept = heading, True, len(answer.said)

    def say(self, at: int, text: str) -> Frames:
        """An answer goes on."""
        if not text:
            return []
        answer = self._answers[at]
        gap = title = ""
        if answer.fresh:
            answer.fresh = False
            gap = _GAP if answer.said else ""
            title = f"{answer.heading}\n" if answer.heading else ""
        answer.said.append((gap, title, text))
        if at != self._at:
            return []
        return [("delta", self._gap() + gap + title + text)]

    def restart(self, at: int, body: Any) -> Frames:
        """An answer begins anew; the others, and what was kept of it, do not."""
        answer = self._answers[at]
        void = len(answer.said) > answer.kept
        del answer.said[answer.kept :]
        answer.fresh = True
        if at != self._at or not void:
            return []
        self._any = self._begun = False
        stays = [text for one in self._answers[:at] if (text := one.text())]
        frames: Frames = [("restart", body)]
        if stays:
            self._any = True
            frames += _deltas(_GAP.join(stays))
        if answer.said:
            frames += _deltas(self._gap() + answer.text())
        return frames

    def end(self, at: int) -> Frames:
        """An answer is whole: it is the turn of the next one."""
        self._answers[at].ended = True
        frames: Frames = []
        while self._at < len(self._answers) and self._answers[self._at].ended:
            self._at, self._begun = self._at + 1, False
            if self._at < len(self._answers) and (text := self._answers[self._at].text()):
                frames += _deltas(self._gap() + text)
        return frames

    def seen(self, at: int) -> bool:
        """Whether the caller has words of an answer that `restart` would take back."""
        answer = self._answers[at]
        return at == self._at and len(answer.said) > answer.kept

    def words(self, at: int) -> str:
        """What one answer says, without headings."""
        return self._answers[at].words()

    def text(self) -> str:
        """The one text."""
        return _GAP.join([text for one in self._answers if (text := one.text())])

    def _gap(self) -> str:
        """What stands before words that are now passed on."""
        gap = _GAP if self._any and not self._begun else ""
        self._any = self._begun = True
        return gap


def _deltas(text: str) -> Frames:
    """A text in pieces that the bus takes."""
    return [("delta", text[at : at + _PIECE]) for at in range(0, len(text), _PIECE)]
