"""Learns anew from what is known of a tenant, whenever it has changed and is quiet again."""

import asyncio
import logging
import time
from collections.abc import Mapping

from lmos_mesh_router.kept_lessons import KeptLessons
from lmos_mesh_router.progress import Progress
from lmos_mesh_router.tenant import Tenant
from lmos_mesh_router.training import MOST_ROWS, TrainingFailed, train_apart

logger = logging.getLogger(__name__)

QUIET_S = 1.0
"""How long nothing must change before it is learned anew."""

PATIENCE_S = 10.0
"""How long it may be put off by further changes."""


class Relearning:
    """Learns what there is to learn of every tenant.

    Args:
        tenants: Those that the index has now.
        lessons: Where what was learned is kept.
        progress: Told what was learned.
    """

    def __init__(
        self, tenants: Mapping[str, Tenant], lessons: KeptLessons, progress: Progress
    ) -> None:
        self._tenants = tenants
        self._lessons = lessons
        self._progress = progress
        self._learnable = asyncio.Event()

    def wake(self) -> None:
        """There is something new to learn from."""
        self._learnable.set()

    async def run(self) -> None:
        """Learn from what has changed, whenever it is quiet, until cancelled."""
        while True:
            due = self._due()
            if due is None:
                self._learnable.clear()
                await self._learnable.wait()
                continue
            wait_s, tenant, state = due
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, QUIET_S))
                continue
            try:
                await self._learn(tenant, state)
            except Exception as exc:
                self._progress.failed = str(exc)
                logger.exception("nothing was learned; what is known goes on")

    def _due(self) -> tuple[float, str, Tenant] | None:
        """Who is next, and in how many seconds."""
        now = time.monotonic()
        found: list[tuple[float, str, Tenant]] = []
        for tenant, state in self._tenants.items():
            if state.changed_s is None:
                continue
            # Texts that are still to come would only have it done twice.
            quiet_s = (now if state.pending else state.last_changed_s) + QUIET_S
            found.append((min(quiet_s, state.changed_s + PATIENCE_S) - now, tenant, state))
        return min(found, key=lambda one: one[:2]) if found else None

    async def _learn(self, tenant: str, state: Tenant) -> None:
        matrix = state.learned.matrix
        state.changed_s = None
        if len(matrix) > MOST_ROWS:
            logger.info("tenant %s has too much evidence to learn from: %d", tenant, len(matrix))
            return
        if not matrix.classes:
            return
        began = time.monotonic()
        self._progress.training = True
        try:
            lesson, is_new = await self._lessons.lesson(matrix, train_apart)
        except (TrainingFailed, OSError) as exc:
            self._progress.failed = str(exc)
            logger.warning("nothing was learned; what is known goes on: %s", exc)
            return
        finally:
            self._progress.training = False
        async with state.changing:
            now = state.learned.matrix
            state.learned = await asyncio.to_thread(lesson.of, now)
            state.views.clear()
            state.trained = now is matrix
        progress = self._progress
        progress.version += 1
        progress.trainings += is_new
        progress.recalled += not is_new
        progress.training_s = time.monotonic() - began
        progress.trained_at = time.time()
        progress.failed = ""
        logger.info(
            "%s from %d texts of tenant %s in %.1f s",
            "learned" if is_new else "recalled what was learned",
            len(matrix),
            tenant,
            progress.training_s,
        )
