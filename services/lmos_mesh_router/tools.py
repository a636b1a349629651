"""What people ask of the router beside decisions: lint, fit, and what became of decisions."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

from lmos_mesh import subjects
from lmos_mesh.bus import Route, route
from lmos_mesh.calls import Call
from lmos_mesh.codec import decode
from lmos_mesh.directory import Directory
from lmos_mesh.errors import InvalidMessage, MeshError
from lmos_mesh.messages import (
    FIT_ROUTER,
    LINT_EXAMPLES,
    LIST_OUTCOMES,
    FitRouter,
    Fitted,
    Labelled,
    LintExamples,
    LintFound,
    ListOutcomes,
    OutcomesListed,
    ReportedOutcome,
)
from lmos_mesh.things import Thing, ThingKey
from lmos_mesh.transport import Stream
from lmos_mesh_router.apart import apart
from lmos_mesh_router.encoder import Encoder
from lmos_mesh_router.evidence import EvidenceMatrix, Mask, Query
from lmos_mesh_router.fits import Fits
from lmos_mesh_router.fitting import FEWEST, MOST, Fit, Known, Outcome, fit
from lmos_mesh_router.linting import lint
from lmos_mesh_router.ranking import Learned

NOBODY = "none"
"""What stands for nobody in an outcome that was corrected."""

_PAGE = 1000
_AT_A_TIME = 64
_MOST_NAMED = 20
_WHOLE_S = 10.0


class Sight(Protocol):
    """What one question may use."""

    @property
    def learned(self) -> Learned:
        """All that is known of the tenant."""
        ...

    @property
    def eligible(self) -> Mask:
        """The classes that may be chosen."""
        ...


class Knowledge(Protocol):
    """What the router knows; `Index` is one."""

    def view(self, tenant: str, channel: str, subset: str) -> Sight:
        """What a question may use, by the numbers that were learned without labelled messages."""
        ...

    async def queries(self, texts: Sequence[str]) -> list[Query]:
        """Messages as vectors."""
        ...

    async def until_whole(self, *, within_s: float) -> bool:
        """Wait until all that is registered is known; False if it took too long."""
        ...


class Tools:
    """Serves `lint`, `fit` and `reported`.

    Args:
        index: What the router knows.
        directory: Who is registered.
        fits: What was fitted.
        encoder: What turns text into vectors.
        threshold: The least confidence to route with where nothing was fitted.
        in_scope: The least share of messages in scope that must be as far out then.
        feedback: Where outcomes are kept, each as a `ReportedOutcome`.
        keeps_feedback: Whether the operator wants outcomes to be kept.
    """

    def __init__(
        self,
        *,
        index: Knowledge,
        directory: Directory,
        fits: Fits,
        encoder: Encoder,
        threshold: float,
        in_scope: float,
        feedback: Stream,
        keeps_feedback: bool,
    ) -> None:
        self._index = index
        self._directory = directory
        self._fits = fits
        self._encoder = encoder
        self._threshold = threshold
        self._in_scope = in_scope
        self._keeps = keeps_feedback
        self._feedback = feedback
        # Each takes a core for seconds; decisions need the other one.
        self._one_at_a_time = asyncio.Lock()

    def routes(self) -> list[Route]:
        """What to serve."""
        return [
            route(LINT_EXAMPLES, self.lint),
            route(FIT_ROUTER, self.fit),
            route(LIST_OUTCOMES, self.reported),
        ]

    # -- lint --

    async def lint(self, request: LintExamples, call: Call) -> LintFound:
        """Which of the registered examples would be misunderstood."""
        things = {
            key: thing
            for key, thing in self._agents(call.tenant).items()
            if (request.subset is None or key.subset == request.subset)
            and (request.channel is None or thing.serves(request.channel))
        }
        # An agent can be chosen before all of its examples are known, which are what is looked at.
        await self._index.until_whole(within_s=_WHOLE_S)
        learned = self._index.view(call.tenant, request.channel or "", "").learned
        async with self._one_at_a_time:
            found = await apart(lint, learned, things)
        return LintFound(
            findings=found.findings[: request.limit],
            total=len(found.findings),
            agents=found.agents,
            capabilities=found.capabilities,
            examples=found.examples,
            judged=found.judged,
            misrouted=found.misrouted,
            encoder=self._encoder.name,
        )

    def _agents(self, tenant: str) -> Mapping[ThingKey, Thing]:
        return {
            entered.key: entered.thing
            for entered in self._directory.membership.for_tenant(tenant)
            if entered.thing.kind == "agent"
        }

    # -- fit --

    async def fit(self, request: FitRouter, call: Call) -> Fitted:
        """Set how sure the router must be for a channel.

        Raises:
            InvalidMessage: There is nothing to fit on.
        """
        tenant, channel = call.tenant, request.channel
        if request.forget:
            gone = await self._fits.forget(tenant, channel) if request.keep else False
            said = "forgotten" if gone else f"nothing is kept for channel {channel!r}"
            return Fitted(kept=gone, encoder=self._encoder.name, notes=(said,))
        await self._index.until_whole(within_s=_WHOLE_S)
        sight = self._index.view(tenant, channel, request.subset)
        matrix = sight.learned.matrix
        place = _places(matrix, sight.eligible)
        if not place:
            raise InvalidMessage(
                f"no agent may be chosen in channel {channel!r}, subset {request.subset!r}",
                hint="`lmos agents` shows who is there",
            )
        reported = await self._rows_reported(tenant, request) if request.feedback else []
        rows, notes = _usable((*reported, *request.rows), matrix)
        unknown = sorted({row.agent for row in rows if row.agent and row.agent not in place})
        rows = [row for row in rows if not row.agent or row.agent in place]
        if sum(bool(row.agent) for row in rows) < FEWEST:
            raise InvalidMessage(
                f"{sum(bool(row.agent) for row in rows)} messages for agents that may be chosen "
                f"here are too few to fit on; {FEWEST} are the fewest",
                hint="; ".join(notes)
                or (f"nobody here is named {', '.join(unknown[:5])}" if unknown else ""),
            )
        if len(rows) > MOST:
            notes.append(f"the first {MOST} messages of {len(rows)} were fitted on")
            rows = rows[:MOST]
        queries: list[Query] = []
        for begin in range(0, len(rows), _AT_A_TIME):
            texts = [row.message for row in rows[begin : begin + _AT_A_TIME]]
            queries.extend(await self._index.queries(texts))
        known = [
            Known(query, place[row.agent] if row.agent else None)
            for query, row in zip(queries, rows, strict=True)
        ]
        async with self._one_at_a_time:
            now = self._fits.of(tenant, channel)
            outcome = await apart(
                _fitted,
                known,
                sight.learned,
                sight.eligible,
                self._threshold,
                self._in_scope,
                request.precision,
                now,
            )
        if request.keep:
            await self._fits.put(tenant, channel, outcome.fit)
        return Fitted(
            before=outcome.before,
            after=outcome.after,
            rows=outcome.fit.rows,
            strangers=outcome.fit.strangers,
            reported=len(reported),
            unknown=tuple(unknown[:_MOST_NAMED]),
            kept=request.keep,
            encoder=self._encoder.name,
            notes=(*notes, *outcome.notes),
        )

    async def _rows_reported(self, tenant: str, request: FitRouter) -> list[Labelled]:
        """Messages whose right agent was reported; of several reports the last holds."""
        truth: dict[str, str] = {}
        for one in await self._outcomes(tenant):
            if (one.channel, one.subset) != (request.channel, request.subset):
                continue
            if one.outcome == "accepted" and one.decided:
                truth[one.message] = one.decided
            elif one.outcome == "corrected":
                truth[one.message] = "" if one.agent == NOBODY else one.agent
        return [Labelled(message=message, agent=agent) for message, agent in truth.items()]

    # -- what became of decisions --

    async def reported(self, request: ListOutcomes, call: Call) -> OutcomesListed:
        """What was reported, the latest first."""
        found = await self._outcomes(call.tenant, request.outcome)
        return OutcomesListed(
            outcomes=tuple(reversed(found[-request.limit :])), total=len(found), keeps=self._keeps
        )

    async def _outcomes(
        self,
        tenant: str,
        outcome: Literal["accepted", "corrected", "escalated"] | None = None,
    ) -> list[ReportedOutcome]:
        """What was reported, the oldest first."""
        pattern = f"lmos.{subjects.escape(tenant)}.feedback.{outcome or '*'}"
        found: list[ReportedOutcome] = []
        after = 0
        while True:
            page = await self._feedback.read(pattern, limit=_PAGE, after=after)
            for packet in page:
                after = max(after, int(packet.headers.get("Nats-Sequence", "0")))
                try:
                    found.append(decode(ReportedOutcome, packet.payload))
                except MeshError:
                    continue  # written by somebody else
            if len(page) < _PAGE:
                return found


def _fitted(
    known: Sequence[Known],
    learned: Learned,
    eligible: Mask,
    threshold: float,
    in_scope: float,
    precision: float,
    now: Fit | None,
) -> Outcome:
    return fit(
        known,
        learned,
        threshold=threshold,
        in_scope=in_scope,
        precision=precision,
        now=now,
        eligible=eligible,
        at=time.time(),
    )


def _places(matrix: EvidenceMatrix, eligible: Mask) -> dict[str, int]:
    """Where the agents are that may be chosen; names are unique in a view of one subset."""
    places = [int(at) for at in matrix.agent_of[eligible]]
    return {matrix.agents[at].name: at for at in places}


def _usable(rows: Iterable[Labelled], matrix: EvidenceMatrix) -> tuple[list[Labelled], list[str]]:
    """Each message once, and none that the router knows by heart."""
    known = {_folded(one.text) for one in matrix.evidence if one.kind == "example"}
    found: dict[str, Labelled] = {}
    left_out = again = 0
    for row in rows:
        text = _folded(row.message)
        if text in known:
            left_out += 1
        elif text in found:
            again += 1
            found[text] = row
        else:
            found[text] = row
    notes: list[str] = []
    if left_out:
        notes.append(f"{left_out} messages are registered examples and were left out")
    if again:
        notes.append(f"{again} messages are there more than once; the last label of each holds")
    return list(found.values()), notes


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
