"""`lmos demo`: a whole mesh with example agents, and a short tour of what it does."""

import asyncio
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

import lmos_mesh
from lmos_mesh import subjects
from lmos_mesh.bus import Bus, new_instance
from lmos_mesh.cli.conversing import Terminal, answered, in_short, percent
from lmos_mesh.cli.screen import err, fail, out, plural
from lmos_mesh.cli.up import UpScreen, plan_of, supervise
from lmos_mesh.errors import MeshError, SettingsError
from lmos_mesh.mesh_events import Event, Up
from lmos_mesh.mesh_state import MeshRecord
from lmos_mesh.messages import (
    FIND_THINGS,
    ROUTER_STATUS,
    Converse,
    Decision,
    FindThings,
    RouterStatus,
)
from lmos_mesh.models import MODEL_NAME, install_model, installed_model
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.programs import Program
from lmos_mesh.settings import Settings
from lmos_mesh.supervisor import Supervisor

NAME = "demo"

_ROUTABLE_S = 20.0
_LOOK_EVERY_S = 0.1
_RIVAL = 0.01
_INDENT = "     "


@dataclass(frozen=True, slots=True)
class Question:
    """One stop of the tour. `same`: in the conversation of the question before it."""

    text: str
    shows: str
    same: bool = False


TOUR = (
    Question("how much do I owe this month?", "a question finds the agent that can answer it"),
    Question("will I need an umbrella in Hamburg tomorrow?", "another one, another agent"),
    Question("find me a train from Berlin to Paris", "nobody said `travel`"),
    Question("and for two people?", "the same conversation: it knows what was said", same=True),
    Question("my internet is down, what can I do?", "a long answer comes word by word"),
    Question("who painted the Mona Lisa?", "nobody here knows, so the mesh asks back"),
)


def demo(*, once: bool) -> int:
    """Run the mesh, ask the questions, and stay unless `once`."""
    files = _agents(_examples())
    _prepare_model()
    plan = plan_of(NAME, agents=(_runner(files),), own_nats=True)
    screen = UpScreen(plan, title="lmos demo", tries=False)
    tour = _Tour(plan.settings, once=once)

    def tell(event: Event) -> None:
        screen.tell(event)
        if isinstance(event, Up):
            tour.begin(event)

    try:
        code = supervise(plan, tell, beside=tour.run)
    finally:
        screen.close()
    screen.end()
    if not once:
        return code
    return code or tour.status


def _examples() -> Path:
    """The folder of example agents: installed, or beside the package in a checkout."""
    package = Path(lmos_mesh.__file__).parent
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / "billing.py").is_file():
            return folder
    raise SettingsError(
        "the example agents are not installed",
        hint="run the demo in a checkout of the project, or `lmos up` and `lmos run` your own",
    )


def _agents(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.py")) if not file.name.startswith("_")]


def _runner(files: Sequence[Path]) -> Program:
    """They run as those of anybody do, so that `lmos agents scale` and its like are for them."""
    return Program(
        name="agents",
        kind="agent",
        role="agents",
        command=(
            sys.executable,
            "-P",
            "-m",
            "lmos_mesh.cli",
            "run",
            "--no-reload",
            "--mesh",
            NAME,
            *(str(file) for file in files),
        ),
    )


def _prepare_model() -> None:
    """Get the embedding model; without it the demo goes on, and says what that means."""
    if installed_model() is not None:
        return
    try:
        with out().status(f"[dim]getting {MODEL_NAME}[/dim]") as status:
            install_model(say=lambda line: status.update(f"[dim]{line}[/dim]"))
        out().print(Text.assemble(("✓ ", "green"), f"{MODEL_NAME} is installed"))
    except MeshError as exc:
        out().print(
            Text.assemble(
                ("! ", "yellow"),
                f"{exc}\n  The demo goes on with the hashing embedder, which knows words and not "
                "their meaning: expect some wrong agents.",
            )
        )


class _Tour:
    """Asks the questions once the mesh is up."""

    def __init__(self, settings: Settings, *, once: bool) -> None:
        self._settings = settings
        self._once = once
        self._up: Up | None = None
        self._begun = asyncio.Event()
        self.status = 130
        """Of the process, if it ends with the tour; 130 until the tour is over."""

    def begin(self, up: Up) -> None:
        """The mesh is up."""
        self._up = up
        self._begun.set()

    async def run(self, supervisor: Supervisor) -> None:
        """Ask, and end the mesh if that was all."""
        await self._begun.wait()
        assert self._up is not None
        try:
            failed = await self._ask_all(self._up.record)
        except MeshError as exc:
            fail(str(exc))
            failed = 1
        self.status = 1 if failed or self._up.failing else 0
        if failed:
            out().print(Text(f"{plural(failed, 'answer')} failed; `lmos logs` says why", "red"))
        if self._once:
            supervisor.stop()
        else:
            out().print(_next(self._up.record))

    async def _ask_all(self, record: MeshRecord) -> int:
        """Returns how many questions got no answer."""
        failed = 0
        instance = new_instance("demo")
        async with (
            NatsTransport.connect(
                record.nats_url,
                name=subjects.connection_name(record.tenant, instance),
                inbox=subjects.inbox(record.tenant, instance),
            ) as transport,
            Bus(transport, tenant=record.tenant, instance=instance) as bus,
        ):
            await until_routable(bus)
            conversation = ""
            for number, question in enumerate(TOUR, start=1):
                if not question.same:
                    conversation = f"c-{secrets.token_hex(6)}"
                failed += not await _ask(bus, number, question, conversation)
        return failed


async def until_routable(bus: Bus) -> None:
    """The router learns the agents' examples in the background; wait until it knows them."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_ROUTABLE_S):
            there = len((await bus.call(FIND_THINGS, FindThings(kind="agent"))).things)
            while True:
                state = await bus.call(ROUTER_STATUS, RouterStatus())
                if state.agents >= there and state.trained and not state.waiting:
                    return
                await asyncio.sleep(_LOOK_EVERY_S)


async def _ask(bus: Bus, number: int, question: Question, conversation: str) -> bool:
    """Ask one question; whether it was answered."""
    out().print(Rule(Text(f"{number} of {len(TOUR)}: {question.shows}", "dim"), style="dim"))
    out().print(Text.assemble(("  ▸  ", "bold cyan"), (question.text, "bold")))
    view = _TourView()
    try:
        request = Converse(message=question.text, conversation=conversation)
        answer = await answered(bus, request, view, timeout_s=60.0)
    except MeshError as exc:
        view.close()
        err().print(Text(f"{_INDENT}{exc}", "red"))
        return False
    view.close()
    out().print()
    return bool(answer.answer.strip())


class _TourView(Terminal):
    """Shows a turn, and in a line or two why it went as it did."""

    def __init__(self) -> None:
        super().__init__(indent=_INDENT)

    def routed(self, decision: Decision) -> None:
        """See `View`."""
        for line in (
            Text(in_short(decision), "green"),
            *(Text(one, "dim") for one in reasons(decision)),
        ):
            # Wrapped also where no terminal is, or it would be cut.
            out().print(Padding.indent(line, len(_INDENT)), soft_wrap=False)


def reasons(decision: Decision) -> Sequence[str]:
    """Why it was decided so, in short lines."""
    if decision.outcome != "routed" or not decision.candidates:
        return [decision.reason] if decision.reason else []
    first, *others = decision.candidates
    near = f"nearest: “{first.evidence}” of {first.agent}, similarity {first.similarity:.2f}"
    rivals = [f"{one.agent} {percent(one.score)}" for one in others if one.score >= _RIVAL]
    return [near, f"others: {', '.join(rivals)}" if rivals else "no other agent comes near"]


def _next(record: MeshRecord) -> Text:
    http = record.http_url
    return Text.assemble(
        ("Now you, in a second terminal\n", "bold"),
        f'  lmos ask --mesh {NAME} --why "where can I stay in Rome?"\n',
        f"  lmos chat --mesh {NAME}\n",
        f"  lmos agents --mesh {NAME} --watch\n",
        f"  lmos agents --mesh {NAME} scale billing 3\n",
        (f"  {http}/docs in a browser\n" if http else ""),
        ("Ctrl-C stops everything", "dim"),
    )
