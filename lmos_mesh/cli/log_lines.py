"""How a line of a log looks to a person. Pure."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from rich.text import Text

_STYLES = {
    "debug": "dim",
    "info": "",
    "warning": "yellow",
    "error": "red",
    "critical": "bold red",
}
_SHOWN_ELSEWHERE = frozenset(
    {"event", "level", "timestamp", "service", "instance", "exception", "logger"}
)
_NATS = re.compile(
    r"\[\d+\] \d{4}/\d\d/\d\d (?P<time>\d\d:\d\d:\d\d)[.\d]* \[(?P<level>\w+)\] (?P<said>.*)",
    re.DOTALL,
)
_NATS_LEVELS = {"DBG": "debug", "WRN": "warning", "ERR": "error", "FTL": "critical"}
WORTH_SAYING = frozenset({"warning", "error", "critical"})


@dataclass(frozen=True, slots=True)
class Line:
    """One line, read: structured if one of ours wrote it, plain otherwise."""

    raw: str
    told: dict[str, Any] | None

    @property
    def level(self) -> str:
        """Its level; empty for a plain line."""
        return str(self.told.get("level", "")) if self.told else ""


def read_line(raw: str) -> Line:
    """A line of a log."""
    if raw.startswith("{"):
        try:
            told = json.loads(raw)
        except ValueError:
            return Line(raw, None)
        if isinstance(told, dict) and "event" in told:
            return Line(raw, cast("dict[str, Any]", told))
    return Line(raw, None)


def shown(line: Line) -> Text:
    """A line as a person reads it: when, what, and the rest in small."""
    told = line.told
    if told is None:
        return _plain(line.raw)
    style = _STYLES.get(line.level, "")
    text = Text()
    if at := _clock(str(told.get("timestamp", ""))):
        text.append(f"{at} ", "dim")
    if line.level in WORTH_SAYING:
        text.append(f"{line.level} ", style)
    text.append(str(told["event"]), style)
    more = [f"{name}={value}" for name, value in told.items() if name not in _SHOWN_ELSEWHERE]
    if more:
        text.append(f"  {' '.join(more)}", "dim")
    if exception := told.get("exception"):
        text.append(f"\n{exception}", "dim")
    return text


def _plain(raw: str) -> Text:
    """A line that is not ours; the NATS server's begin with `[pid] date time [level]`."""
    found = _NATS.match(raw)
    if found is None:
        return Text(raw)
    level = _NATS_LEVELS.get(found["level"], "info")
    text = Text.assemble((f"{found['time']} ", "dim"))
    if level in WORTH_SAYING:
        text.append(f"{level} ", _STYLES[level])
    return text.append(found["said"], _STYLES[level])


def _clock(stamp: str) -> str:
    try:
        return (
            datetime.fromisoformat(stamp.replace("Z", "+00:00")).astimezone().strftime("%H:%M:%S")
        )
    except ValueError:
        return ""
