"""What a language model costs, what it may cost, and what it was good for. Pure."""

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from lmos_mesh.messages import ModelUse
from lmos_mesh_router.llm import Answer, NoHelp, Received

_CHARS_PER_TOKEN = 4  # of English, roughly; only where a server does not count


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a million tokens cost, in whatever currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What a call costs."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


def expected_use(request: Mapping[str, Any], prices: Prices) -> ModelUse:
    """What a request will cost at the most, roughly: to be set aside until it is known."""
    sent = sum(len(str(one["content"])) for one in request["messages"])
    allowed = request.get("max_tokens", request.get("max_completion_tokens", 0))
    prompt = sent // _CHARS_PER_TOKEN + 1
    return ModelUse(
        model=str(request["model"]),
        calls=1,
        prompt_tokens=prompt,
        completion_tokens=allowed,
        cost=prices.of(prompt, allowed),
    )


def use_of(reply: Received, expected: ModelUse, prices: Prices) -> ModelUse:
    """What a call cost: by the server's count, by the length where it does not count."""
    if reply.status != 200:
        return ModelUse(model=expected.model, calls=1)
    usage: dict[str, Any] = {}
    try:
        body = json.loads(reply.text)
        match body:
            case {"usage": {**counted}}:
                usage = cast("dict[str, Any]", counted)
            case _:
                pass
    except (ValueError, RecursionError):
        pass
    written = min(len(reply.text) // _CHARS_PER_TOKEN + 1, expected.completion_tokens)
    prompt = _count(usage.get("prompt_tokens"), expected.prompt_tokens)
    completion = _count(usage.get("completion_tokens"), written)
    return ModelUse(
        model=expected.model,
        calls=1,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost=prices.of(prompt, completion),
    )


def _count(said: Any, otherwise: int) -> int:
    plausible = isinstance(said, int) and not isinstance(said, bool) and 0 <= said <= 10_000_000
    return said if plausible else otherwise


def together(one: ModelUse, other: ModelUse) -> ModelUse:
    """The sum of two uses."""
    return ModelUse(
        model=one.model or other.model,
        calls=one.calls + other.calls,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        cost=one.cost + other.cost,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What this process may spend; None for no limit."""

    calls_per_minute: int | None = None
    calls_per_day: int | None = None
    cost_per_minute: float | None = None
    cost_per_day: float | None = None


class Budget:
    """Keeps calls and cost within limits, over any minute and any day.

    What a call may cost is set aside before it is made, so that calls at the same time cannot
    spend the same money.
    """

    def __init__(self, limits: Limits) -> None:
        self._spans = (
            _Span("minute", 60.0, limits.calls_per_minute, limits.cost_per_minute),
            _Span("day", 86_400.0, limits.calls_per_day, limits.cost_per_day),
        )

    def take(self, cost: float, *, now: float) -> str:
        """Set aside one call; if there is no room, say why instead."""
        for span in self._spans:
            if why := span.full(cost, now):
                return why
        for span in self._spans:
            span.add(1, cost, now)
        return ""

    def settle(self, taken: float, cost: float, *, now: float) -> None:
        """Say what a call did cost for which `taken` was set aside."""
        for span in self._spans:
            span.add(0, cost - taken, now)


class _Span:
    """What was spent in the last minute or day, in sixty steps."""

    def __init__(self, name: str, span_s: float, calls: int | None, cost: float | None) -> None:
        self._name, self._span_s, self._step_s = name, span_s, span_s / 60
        self._most_calls, self._most_cost = calls, cost
        self._steps: deque[tuple[int, int, float]] = deque()

    def full(self, cost: float, now: float) -> str:
        current = math.floor(now / self._step_s)
        while self._steps and self._steps[0][0] <= current - 60:
            self._steps.popleft()
        calls = sum(step[1] for step in self._steps)
        spent = sum(step[2] for step in self._steps)
        if self._most_calls is not None and calls >= self._most_calls:
            return f"the {self._most_calls} calls that may be made in a {self._name} are made"
        if self._most_cost is not None and spent + cost > self._most_cost:
            return (
                f"another call could cost more than the {self._most_cost:g} a {self._name} "
                f"({spent:.4g} are spent)"
            )
        return ""

    def add(self, calls: int, cost: float, now: float) -> None:
        current = math.floor(now / self._step_s)
        if self._steps and self._steps[-1][0] >= current:
            at, before, spent = self._steps.pop()
            self._steps.append((at, before + calls, spent + cost))
        else:
            self._steps.append((current, calls, cost))


@dataclass(slots=True, kw_only=True)
class Account:
    """What the language model did and cost since this process started.

    Attributes:
        decisions: Decisions that could have reached it: by `llm` or `hybrid`.
        asked: Those that did.
        agreed: Those in which it chose the agent that the vectors held likeliest.
        overruled: Those that it changed.
        fell_back: Those that were decided without it although it was wanted, by why.
        calls: Requests to the server, retries included.
        retries: Requests beyond the first of a decision.
    """

    decisions: int = 0
    asked: int = 0
    agreed: int = 0
    overruled: int = 0
    fell_back: dict[str, int] = field(default_factory=dict[str, int])
    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def share(self) -> float:
        """The share of decisions that reached the model."""
        return self.asked / self.decisions if self.decisions else 0.0

    def note(
        self,
        used: ModelUse | None,
        answer: Answer | None,
        settled: Literal["", "agreed", "overruled"] = "",
    ) -> None:
        """Count one decision.

        Args:
            used: What it cost; None or without calls if the model was not asked.
            answer: What the model made of it; None if it was not wanted.
            settled: How its answer and the vectors came together.
        """
        self.decisions += 1
        if used is not None and used.calls:
            self.asked += 1
            self.calls += used.calls
            self.retries += used.calls - 1
            self.prompt_tokens += used.prompt_tokens
            self.completion_tokens += used.completion_tokens
            self.cost += used.cost
        if isinstance(answer, NoHelp):
            self.fell_back[answer.failure] = self.fell_back.get(answer.failure, 0) + 1
        self.agreed += settled == "agreed"
        self.overruled += settled == "overruled"
