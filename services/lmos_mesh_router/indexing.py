"""Keeps what the router knows in step with the registry: embeds, builds, learns, and swaps.

Whoever decides takes a `View` and is done with it: what it refers to never changes. A new or
changed agent is part of the next one as soon as the most telling of its texts are embedded; until
then the agent is chosen by what it was before. The rest follows in the background, and at last,
when it is quiet, what was learned from all of it.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from lmos_mesh.directory import Directory
from lmos_mesh.membership import Membership
from lmos_mesh.things import SHARED, Thing, ThingKey
from lmos_mesh.wiring import Wiring, Wirings
from lmos_mesh_router.building import Builder
from lmos_mesh_router.eligibility import Eligibility
from lmos_mesh_router.embedding import BATCH, Embedder, Vector
from lmos_mesh_router.evidence import Block, Query, evidence_of, most_telling_first
from lmos_mesh_router.hashing import DIMENSIONS
from lmos_mesh_router.kept_lessons import KeptLessons
from lmos_mesh_router.kept_vectors import KeptVectors
from lmos_mesh_router.nearest import Frozen, available
from lmos_mesh_router.pending import LAST_STAGE, Pending
from lmos_mesh_router.progress import Progress
from lmos_mesh_router.ranking import Learned
from lmos_mesh_router.relearning import Relearning
from lmos_mesh_router.tenant import Tenant
from lmos_mesh_router.view import View

logger = logging.getLogger(__name__)

_SHOWN_EVERY_S = 0.05
_SHARE_OF_SHOWING = 4
_FEW_JOIN = 8
_REST_OF_FEW_S = 0.1
_MOST_FIRST = 64
"""Texts at a time of those without which an agent is not chosen."""
_AGAIN_S = 1.0
_MOST_REST_S = 10.0


class Index:
    """What the router knows of every tenant. All but `run` and `learn` happens between awaits."""

    def __init__(
        self,
        directory: Directory,
        embedder: Embedder,
        kept: KeptVectors,
        lessons: KeptLessons,
        wirings: Wirings | None = None,
    ) -> None:
        encoder = embedder.encoder
        self.progress = Progress()
        self._directory = directory
        self._embedder = embedder
        self._kept = kept
        # An encoder that knows spelling only has it in its vectors already.
        words = DIMENSIONS if encoder.semantic else 0
        self._builder = Builder(dimensions=encoder.dimensions, words=words)
        self._nothing = self._builder.nothing()
        self._tenants: dict[str, Tenant] = {}
        self._eligibility = Eligibility(directory.membership, wirings)
        self._relearning = Relearning(self._tenants, lessons, self.progress)
        self._wake = asyncio.Event()
        self._whole = asyncio.Event()
        self._shown = asyncio.Event()
        directory.on_change(self._on_change)

    @property
    def _membership(self) -> Membership:
        return self._directory.membership

    # -- what is asked --

    def wiring(self, tenant: str, channel: str, subset: str) -> Wiring | None:
        """What a closed channel lets through; None for an open one."""
        return self._eligibility.wiring(tenant, channel, subset)

    def forget_views(self) -> None:
        """Other agents may serve the channels from now on."""
        self._eligibility.forget_wirings()
        for state in self._tenants.values():
            state.views.clear()

    def view(self, tenant: str, channel: str, subset: str) -> View:
        """What a question may use: live agents of the tenant that serve the channel.

        Of a closed channel those of its Routing, with the capabilities that are wired there.
        """
        state = self._tenants.get(tenant)
        if state is None or not state.begun:
            # It has no agents of its own yet.
            state = self._tenants.get(SHARED)
        if state is None:
            return View(self._nothing, np.zeros(0, np.bool_))
        return self._eligibility.view(state, (tenant, channel, subset))

    async def queries(self, texts: Sequence[str]) -> list[Query]:
        """Messages as vectors."""
        vectors = await self._embedder.embed(texts)
        return [
            Query(vector, self._builder.spelling(text))
            for text, vector in zip(texts, vectors, strict=True)
        ]

    def _parts(self) -> Iterator[Block]:
        """What is known of every agent, once."""
        for name, state in self._tenants.items():
            for part in state.learned.matrix.parts:
                if part.key.tenant == name:
                    yield part

    @property
    def live_agents(self) -> int:
        """How many live agents there are to choose from, in all tenants."""
        live = self._membership.live
        return sum(live(part.key) for part in self._parts())

    @property
    def texts(self) -> int:
        """How many texts speak for agents."""
        return sum(len(part.evidence) for part in self._parts())

    @property
    def capabilities(self) -> int:
        """How many capabilities are told apart."""
        return sum(len(part.capabilities) for part in self._parts())

    @property
    def waiting(self) -> int:
        """How many texts have yet to be embedded."""
        return sum(
            len(one.staged) - one.at
            for tenant in self._tenants.values()
            for one in tenant.pending.values()
        )

    @property
    def learned_all(self) -> bool:
        """Whether everything that is known has been learned from."""
        return all(one.trained for one in self._tenants.values() if one.learned.matrix.classes)

    # -- what changes --

    def _on_change(self, changed: Iterable[ThingKey]) -> None:
        for key in changed:
            entered = self._membership.get(key)
            thing = entered.thing if entered and entered.thing.kind == "agent" else None
            self._look_everywhere(key)
            state = self._tenants.get(key.tenant)
            if state is None:
                if thing is None:
                    continue
                state = self._tenants[key.tenant] = Tenant(key.tenant, self._nothing)
            known = state.things.get(key)
            if known is not thing and known != thing:
                self._change(state, key, thing)

    def _look_everywhere(self, key: ThingKey) -> None:
        """Whether an agent may be chosen, in every tenant that may mean it."""
        if key.tenant == SHARED:
            for state in self._tenants.values():
                self._eligibility.look_again(state, key)
            return
        own, shared = self._tenants.get(key.tenant), self._tenants.get(SHARED)
        if own is not None:
            self._eligibility.look_again(own, key)
        namesake = key._replace(tenant=SHARED)
        if shared is None or namesake not in shared.things:
            return
        # A tenant's own hides it for as long as it is registered.
        self._eligibility.look_again(shared, namesake)
        if own is not None:
            self._eligibility.look_again(own, namesake)
            shown = namesake in own.learned.matrix.agents
            if shown != self._membership.is_meant(own.name, namesake):
                self._show_shared(own)

    def _show_shared(self, state: Tenant) -> None:
        """Have a tenant's index take over what is known of shared agents now."""
        state.shared_due = True
        self._whole.clear()
        self._wake.set()

    def _change(self, state: Tenant, key: ThingKey, thing: Thing | None) -> None:
        if thing is None:
            state.things.pop(key, None)
            state.pending[key] = Pending(None)
        else:
            state.things[key] = thing
            before = state.pending.get(key)
            pending = Pending(thing, most_telling_first(evidence_of(key, thing)))
            if before is not None:
                pending.vectors = before.vectors
            state.pending[key] = pending
        self._whole.clear()
        self._wake.set()

    async def until_whole(self, *, within_s: float) -> bool:
        """Wait until all that is registered is part of the index; False if it took too long."""
        self._on_change([entered.key for entered in self._membership])
        if not any(one.due for one in self._tenants.values()):
            return True
        try:
            async with asyncio.timeout(within_s):
                await self._whole.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Follow what changes until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._keep_fast())

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while any(one.due for one in self._tenants.values()):
                    await self._step()
            except Exception:
                logger.exception("the index could not be built; the last one stays in use")
                await asyncio.sleep(_AGAIN_S)
                self._wake.set()
            else:
                self._whole.set()

    async def _step(self) -> None:
        """Show what can be shown, then embed some more."""
        for state in list(self._tenants.values()):
            known: dict[ThingKey, dict[str, Vector]] | None = None
            for key, pending in list(state.pending.items()):
                if not pending.recalled:
                    known = self._vectors_shown(state) if known is None else known
                    await self._recall(pending, known.get(key, {}))
        await self._show_what_is_due()
        waiting = [
            pending
            for state in self._tenants.values()
            for pending in state.pending.values()
            if pending.at < len(pending.staged)
        ]
        if not waiting:
            if any(one.due for one in self._tenants.values()):
                await asyncio.sleep(_SHOWN_EVERY_S)
            return
        stage = min(one.stage for one in waiting)
        texts: dict[str, None] = {}
        for pending in waiting:
            for of, one in pending.staged[pending.at :]:
                if of > stage or len(texts) >= (_MOST_FIRST if stage == 0 else BATCH):
                    break
                if one.text not in pending.vectors:
                    texts[one.text] = None
        found = await self._embedder.embed(list(texts), urgency="soon" if stage == 0 else "later")
        self.progress.embedded += len(texts)
        for text, vector in zip(texts, found, strict=True):
            self._kept.put(text, vector)
        new = dict(zip(texts, found, strict=True))
        for pending in waiting:
            for _, one in pending.staged[pending.at :]:
                if one.text in new:
                    pending.vectors[one.text] = new[one.text]
            pending.advance()

    def _vectors_shown(self, state: Tenant) -> dict[ThingKey, dict[str, Vector]]:
        changed = [key for key in state.pending if key in state.learned.matrix.agents]
        if not changed:
            return {}
        blocks = state.learned.matrix.blocks()
        return {
            key: dict(
                zip((one.text for one in blocks[key].evidence), blocks[key].vectors, strict=True)
            )
            for key in changed
        }

    async def _recall(self, pending: Pending, before: dict[str, Vector]) -> None:
        """Take what was embedded at any time."""
        pending.recalled = True
        for _, one in pending.staged:
            if one.text in pending.vectors:
                continue
            vector = before.get(one.text)
            if vector is None:
                vector = self._embedder.known(one.text)
                if vector is not None:
                    self._kept.put(one.text, vector)
            if vector is None:
                vector = self._kept.take(one.text)
                self.progress.kept += vector is not None
            if vector is not None:
                pending.vectors[one.text] = vector
        missing = {one.text for _, one in pending.staged} - pending.vectors.keys()
        found = await self._kept.again(missing)
        self.progress.kept += len(found)
        pending.vectors.update(found)
        pending.advance()

    async def _show_what_is_due(self) -> None:
        # The shared ones first: what is new of them is shown to all.
        for state in sorted(self._tenants.values(), key=lambda one: one.name != SHARED):
            ready = {key: one for key, one in state.pending.items() if one.stage > one.shown + 1}
            whole = all(one.stage > LAST_STAGE for one in state.pending.values())
            # What is new to the index waits for no more than a moment; what adds to it can.
            new = any(one.shown < 0 for one in ready.values())
            # While many join, most of the time is for embedding them. To show a few takes no
            # longer because it took long to show thousands.
            rest_s = _SHARE_OF_SHOWING * state.took_s
            if len(state.pending) <= _FEW_JOIN:
                rest_s = min(rest_s, _REST_OF_FEW_S)
            rest_s = max(_SHOWN_EVERY_S, rest_s)
            rested = time.monotonic() - state.shown_s >= rest_s
            if (ready and (whole or (new and rested))) or (state.shared_due and rested):
                await self._show(state, ready)

    async def _show(self, state: Tenant, ready: dict[ThingKey, Pending]) -> None:
        """Swap in what is ready of some agents."""
        began = time.monotonic()
        parts = {key: (one.ready, one.vectors) for key, one in ready.items()}
        shared = self._shared_for(state.name)
        state.shared_due = False
        stages = {key: one.stage - 1 for key, one in ready.items()}
        async with state.changing:
            before = state.learned
            state.learned = await asyncio.to_thread(self._builder.built, before, parts, shared)
            state.begun = True
            for key in (*parts, *(shared or ())):
                self._eligibility.look_again(state, key)
            state.trained = False
        self.progress.version += 1
        self._shown.set()
        state.shown_s = state.last_changed_s = time.monotonic()
        state.took_s = state.shown_s - began
        if state.changed_s is None:
            state.changed_s = state.shown_s
        for key, one in ready.items():
            one.shown = stages[key]
            if one.shown >= LAST_STAGE and state.pending.get(key) is one:
                del state.pending[key]
        if state.name == SHARED:
            for other in self._tenants.values():
                if other is not state:
                    self._show_shared(other)
        elif not state.things and not state.pending:
            # Those without an agent of their own are served by the index of the shared ones.
            self._tenants.pop(state.name, None)
        self._relearning.wake()

    def _shared_for(self, tenant: str) -> dict[ThingKey, Block] | None:
        """What is known of the shared agents that a tenant means; each is embedded once."""
        if tenant == SHARED:
            return None
        shared = self._tenants.get(SHARED)
        parts = shared.learned.matrix.parts if shared is not None else ()
        return {one.key: one for one in parts if self._membership.is_meant(tenant, one.key)}

    # -- how it is searched --

    async def _keep_fast(self) -> None:
        """Make the index of a large tenant anew when it has become too old."""
        while True:
            await self._shown.wait()
            self._shown.clear()
            due = [one for one in self._tenants.values() if one.learned.matrix.nearest.due]
            if due and not available():
                logger.warning(
                    "%d capabilities are compared one by one, as FAISS is not installed; "
                    "pip install 'lmos-mesh[router]'",
                    sum(len(one.learned.matrix.classes) for one in due),
                )
                return
            for state in due:
                began = time.monotonic()
                try:
                    await self._freeze(state)
                except Exception:
                    logger.exception("no index could be made; all is compared one by one")
                    await asyncio.sleep(_AGAIN_S)
                    self._shown.set()
                took_s = time.monotonic() - began
                # While thousands join, each second another one would be made for nothing.
                await asyncio.sleep(min(_MOST_REST_S, _SHARE_OF_SHOWING * took_s))

    async def _freeze(self, state: Tenant) -> None:
        began = time.monotonic()
        frozen = await asyncio.to_thread(state.learned.matrix.freeze)
        async with state.changing:
            state.learned = await asyncio.to_thread(_indexed, state.learned, frozen)
            state.views.clear()
        progress = self.progress
        progress.version += 1
        progress.frozen += 1
        progress.freezing_s = time.monotonic() - began
        progress.recall = frozen.recall
        if state.learned.matrix.nearest.due:
            self._shown.set()

    # -- what is learned --

    async def learn(self) -> None:
        """Learn from what has changed, whenever it is quiet, until cancelled."""
        await self._relearning.run()


def _indexed(learned: Learned, frozen: Frozen) -> Learned:
    return replace(learned, matrix=learned.matrix.indexed(frozen))
