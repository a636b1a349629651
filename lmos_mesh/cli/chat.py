"""`lmos chat`: a conversation in the terminal."""

import asyncio
import secrets
import sys
import threading
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, TypeVar

from rich.text import Text

from lmos_mesh.bus import Bus
from lmos_mesh.cli.agents import find, table_of
from lmos_mesh.cli.connection import connected, typed_in
from lmos_mesh.cli.conversing import (
    Terminal,
    answered,
    attributes_of,
    explained,
    text_only,
    unanswered,
)
from lmos_mesh.cli.screen import err, fail, out
from lmos_mesh.errors import MeshError
from lmos_mesh.messages import Converse, Decision

ResultT = TypeVar("ResultT")

_HELP = """\
/new     begin another conversation
/why     why that agent answered
/agents  who is there
/quit    leave (Ctrl-D too); Ctrl-C calls an answer off"""
# Readline counts what it is not told to ignore as part of the prompt's width.
_PROMPT = "\001\x1b[1;36m\002▸\001\x1b[0m\002 "


def chat(
    *,
    agent: str | None,
    conversation: str | None,
    channel: str,
    subset: str | None,
    user: str | None = None,
    attributes: Sequence[str] = (),
    mesh: str | None,
) -> int:
    """Talk until the end of the input; 1 if a piped message got no answer."""
    request = Converse(
        message="-",
        agent=agent,
        channel=channel,
        subset=subset,
        user=user,
        attributes=attributes_of(attributes),
    )
    with _loop() as loop, loop.held(connected(mesh)) as bus:
        return _Chat(loop, bus, request, conversation).run()


class _Loop:
    """An event loop in a thread, so that the bus lives while a person thinks or types."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bus", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run a coroutine there; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            with suppress(CancelledError, MeshError, TimeoutError):
                future.result(timeout=2.0)
            raise

    @contextmanager
    def held(self, context: Any) -> Generator[Any]:
        """Be inside an asynchronous context of that loop while the block lasts."""
        entered: asyncio.Queue[Any] = asyncio.Queue()
        done = asyncio.Event()

        async def hold() -> None:
            try:
                async with context as value:
                    entered.put_nowait(value)
                    await done.wait()
            except MeshError as exc:
                entered.put_nowait(exc)

        holding = asyncio.run_coroutine_threadsafe(hold(), self._loop)
        value = self.call(entered.get())
        if isinstance(value, MeshError):
            raise value
        try:
            yield value
        finally:
            self._loop.call_soon_threadsafe(done.set)
            with suppress(TimeoutError):
                holding.result(timeout=3.0)

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=3.0)
        if not self._thread.is_alive():
            self._loop.close()


@contextmanager
def _loop() -> Generator[_Loop]:
    loop = _Loop()
    try:
        yield loop
    finally:
        loop.close()


class _Chat:
    def __init__(self, loop: _Loop, bus: Bus, request: Converse, conversation: str | None) -> None:
        self._loop = loop
        self._bus = bus
        self._request = request
        self._conversation = conversation or _new_conversation()
        self._decision: Decision | None = None
        self._failed = False

    def run(self) -> int:
        """Read and answer until the end."""
        if typed_in():
            with suppress(ImportError):
                import_module("readline")  # gives `input` its line editing and history
            err().print("[dim]/help lists commands, Ctrl-D leaves[/dim]")
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    break
            elif line:
                self._turn(line)
        return 1 if self._failed and not typed_in() else 0

    def _read(self) -> str | None:
        """The next line; None at the end."""
        try:
            if typed_in():
                return input(_PROMPT if sys.stdout.isatty() else "").strip()
            with text_only("standard input"):
                line = sys.stdin.readline()
                line.encode()
        except EOFError:
            err().print()
            return None
        except KeyboardInterrupt:
            err().print("\n[dim]Ctrl-D leaves[/dim]")
            return ""
        if not line:
            return None
        if line.strip():
            err().print(Text(f"▸ {line.strip()}", "cyan"))
        return line.strip()

    def _turn(self, message: str) -> None:
        request = self._request.model_copy(
            update={"message": message, "conversation": self._conversation}
        )
        view = _Remembering(self)
        try:
            answer = self._loop.call(answered(self._bus, request, view))
            view.close()
            for one in unanswered(answer):
                err().print(Text(one, "yellow"))
        except KeyboardInterrupt:
            view.close()
            err().print("[dim]called off[/dim]")
        except MeshError as exc:
            view.close()
            fail(str(exc))
            self._failed = True
        finally:
            view.close()
            if typed_in():
                out().print()

    def _command(self, line: str) -> bool:
        """Do what a line beginning with `/` says; whether to go on."""
        match line.split()[0]:
            case "/quit" | "/exit" | "/q":
                return False
            case "/new":
                self._conversation = _new_conversation()
                self._decision = None
                err().print("[dim]a new conversation[/dim]")
            case "/why":
                said = explained(self._decision) if self._decision else "nothing was asked yet"
                out().print(said)
            case "/agents":
                try:
                    found = self._loop.call(find(self._bus))
                    out().print(table_of([one for one in found if one.live]))
                except MeshError as exc:
                    fail(str(exc))
            case "/help":
                out().print(_HELP)
            case other:
                err().print(f"[dim]there is no command {other}; /help lists them[/dim]")
        return True

    def remember(self, decision: Decision) -> None:
        """What `/why` tells."""
        self._decision = decision


class _Remembering(Terminal):
    """Shows a turn, and keeps its decision for `/why`."""

    def __init__(self, chat: _Chat) -> None:
        super().__init__()
        self._chat = chat

    def routed(self, decision: Decision) -> None:
        """See `View`."""
        self._chat.remember(decision)
        super().routed(decision)


def _new_conversation() -> str:
    return f"c-{secrets.token_hex(6)}"
