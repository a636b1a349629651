"""Where the plain functions of an agent run, so that they hold up nobody."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Threads:
    """The threads of one agent, made when the first one is needed.

    Attributes:
        running: One object for each function that is running now; a thread cannot be stopped.
    """

    def __init__(self, name: str, most: int) -> None:
        self.running: set[object] = set()
        self._name = name
        self._most = most
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[], Any]) -> Any:
        """Run it in a thread that knows which call it answers, so that its logs say so."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._most, thread_name_prefix=self._name)
        here = contextvars.copy_context()
        mark = object()

        def marked() -> Any:
            self.running.add(mark)
            try:
                return here.run(work)
            except StopIteration as exc:
                # A future does not take this one: whoever waits for it would wait for ever.
                raise RuntimeError("raised StopIteration") from exc
            finally:
                self.running.discard(mark)

        return await asyncio.get_running_loop().run_in_executor(self._pool, marked)

    async def each(self, pieces: "Generator[Any, Any, Any]") -> AsyncIterator[Any]:
        """What a generator yields, each piece made in a thread."""
        end = object()
        while (piece := await self.run(lambda: next(pieces, end))) is not end:
            yield piece
