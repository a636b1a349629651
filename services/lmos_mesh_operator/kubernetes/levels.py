"""Looks at what has changed until it is as it should be: each thing by one worker at a time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

from lmos_mesh.errors import MeshError

KeyT = TypeVar("KeyT", bound=Hashable)

logger = logging.getLogger(__name__)


class Levels(Generic[KeyT]):
    """What is due, and who looks at it.

    Args:
        level: Looks at one of them. What it raises is told to `failed`, and it is called again
            later, after ever longer pauses.
        failed: Takes what was raised; logs it unless it is given.
    """

    def __init__(
        self,
        level: Callable[[KeyT], Awaitable[None]],
        *,
        failed: Callable[[KeyT, MeshError], None] | None = None,
        workers: int = 8,
        first_s: float = 0.5,
        factor: float = 2.0,
        most_s: float = 60.0,
    ) -> None:
        self._level = level
        self._failed = failed or self._log
        self._workers = asyncio.Semaphore(workers)
        self._pauses_s = (first_s, factor, most_s)
        self._due: dict[KeyT, None] = {}
        self._busy: set[KeyT] = set()
        self._later: dict[KeyT, asyncio.TimerHandle] = {}
        self._failures: dict[KeyT, int] = {}
        self._some = asyncio.Event()

    def look_at(self, keys: Iterable[KeyT]) -> None:
        """These may have changed."""
        for key in keys:
            self._due[key] = None
            if (timer := self._later.pop(key, None)) is not None:
                timer.cancel()
        if self._due:
            self._some.set()

    def look_at_later(self, key: KeyT, delay_s: float) -> None:
        """Look at it then, if nothing makes it due before."""
        if key not in self._later:
            loop = asyncio.get_running_loop()
            self._later[key] = loop.call_later(delay_s, self._now, key)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._some.wait()
                    self._some.clear()
                    for key in [one for one in self._due if one not in self._busy]:
                        del self._due[key]
                        self._busy.add(key)
                        tasks.create_task(self._work(key))
        finally:
            for timer in self._later.values():
                timer.cancel()
            self._later.clear()

    async def _work(self, key: KeyT) -> None:
        try:
            async with self._workers:
                await self._level(key)
            self._failures.pop(key, None)
        except MeshError as exc:
            self._failed(key, exc)
            first_s, factor, most_s = self._pauses_s
            failures = self._failures.get(key, 0)
            self._failures[key] = min(failures + 1, 100)
            self.look_at_later(key, min(most_s, first_s * factor**failures))
        finally:
            self._busy.discard(key)
            if key in self._due:
                self._some.set()

    def _now(self, key: KeyT) -> None:
        self._later.pop(key, None)
        self.look_at([key])

    def _log(self, key: KeyT, error: MeshError) -> None:
        logger.warning("%s, trying again: %s", key, error)
