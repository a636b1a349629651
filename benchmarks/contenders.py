"""The peers, ready to be measured: what each of them needs running, and how it is asked.

python benchmarks/contenders.py --quick       # shows that every peer works here
"""

import json
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from display import said_by, table
from figures import Report, figure
from harness import (
    HERE,
    Settings,
    Stage,
    conditions,
    free_port,
    nats_server,
    our_command,
    peer_command,
    peers_installed,
    python_path,
    run_stage,
    server,
    with_environment,
)
from our_mesh import our_mesh

# Which bare processes each kind of work needs.
RAW_ROLES = {
    "echo": ("echo",),
    "stream": ("stream",),
    "turn": ("agent", "router"),
    "direct": ("agent",),
}


@contextmanager
def raw_nats(mode: str, loop: str = "uvloop", *more: str) -> Generator[Stage]:
    """Bare nats-py; a `turn` passes a router of its own, a `direct` one does not.

    Args:
        mode: One of `RAW_ROLES`.
        loop: The event loop of both sides.
        more: Further options of the load program, e.g. `--bytes 1060`.
    """
    with on_nats("raw_nats", loop, {role: ["--role", role] for role in RAW_ROLES[mode]}) as stage:
        yield Stage(pids=stage.pids, load=[*stage.load, "--mode", mode, *more])


@contextmanager
def faststream(mode: str, loop: str = "uvloop") -> Generator[Stage]:
    """FastStream, for `echo` and `turn`."""
    with on_nats("faststream", loop, {"faststream": []}) as stage:
        yield Stage(pids=stage.pids, load=[*stage.load, "--mode", mode])


def synadia(loop: str = "uvloop") -> AbstractContextManager[Stage]:
    """Synadia's agent SDK, for `turn`, at 64 prompts a time."""
    return on_nats("synadia", loop, {"synadia": ["--at-a-time", "64"]})


@contextmanager
def a2a(loop: str = "uvloop") -> Generator[Stage]:
    """A bare a2a-sdk server, for `turn`; there is no NATS in it."""
    port = ["--port", str(free_port()), "--loop", loop]
    with server("a2a", peer_command("a2a", "a2a_server", *port)) as running:
        yield Stage(pids={"a2a": running.pid}, load=peer_command("a2a", "a2a_load", *port))


@contextmanager
def our_bus(mode: str, loop: str = "uvloop") -> Generator[Stage]:
    """Our bus, for `echo` and `stream`: one responder in a queue group."""
    with ExitStack() as stack:
        nats = stack.enter_context(nats_server())
        options = ["--nats-url", nats.said["url"], "--loop", loop]
        running = stack.enter_context(server("lmos-mesh", our_command("bus_server", *options)))
        yield Stage(
            pids={"nats-server": nats.pid, "responder": running.pid},
            load=our_command("bus_load", *options, "--mode", mode),
        )


@contextmanager
def our_turn(mode: str, loop: str = "uvloop") -> Generator[Stage]:
    """A whole mesh of ours, asked on the bus; see `ours/turn_load.py` for the modes."""
    with our_mesh() as mesh:
        options = ["--nats-url", mesh.url, "--loop", loop, "--mode", mode]
        yield Stage(pids=mesh.pids, load=our_command("turn_load", *options))


# How our HTTP adapter is asked. LMOS keeps every conversation, OpenAI's clients keep their own.
HTTP_FORMS = {
    "stored": [
        *("--url", "{base}/apis/v1/demo/chat/{ask}/message"),
        *("--header", "x-turn-id: {ask}"),
        *("--body", '{"inputContext":{"messages":[{"role":"user","content":"{question}"}]}}'),
        *("--event", "delta", "--text-at", "content", "--last", "end"),
    ],
    "unstored": [
        *("--url", "{base}/v1/chat/completions"),
        "--body",
        '{"model":"auto","stream":true,"messages":[{"role":"user","content":"{question}"}]}',
        *("--text-at", "choices.0.delta.content", "--done", "[DONE]"),
    ],
}


@contextmanager
def our_http_turn(mode: str, loop: str = "uvloop") -> Generator[Stage]:
    """A whole mesh of ours, asked over HTTP: by LMOS's contract (stored) or OpenAI's."""
    with our_mesh(http=True) as mesh:
        options = [part.replace("{base}", mesh.http) for part in HTTP_FORMS[mode]]
        accept = ["--header", "accept: text/event-stream", "--loop", loop]
        command = [sys.executable, str(HERE / "http_load.py"), "--name", f"http {mode}"]
        yield Stage(
            pids=mesh.pids,
            load=[*with_environment(command, PYTHONPATH=python_path()), *options, *accept],
        )


@contextmanager
def on_nats(peer: str, loop: str, servers: Mapping[str, Sequence[str]]) -> Generator[Stage]:
    """A fresh nats-server and a peer's servers, by name and each with options of its own."""
    with ExitStack() as stack:
        nats = stack.enter_context(nats_server())
        options = ["--nats-url", nats.said["url"], "--loop", loop]
        pids = {"nats-server": nats.pid}
        for name, more in servers.items():
            command = peer_command(peer, f"{peer}_server", *options, *more)
            pids[name] = stack.enter_context(server(name, command)).pid
        yield Stage(pids=pids, load=peer_command(peer, f"{peer}_load", *options))


def main() -> None:
    """Run each work of each installed peer once and show what came out."""
    settings = Settings.from_command_line("Shows that every peer works here; compares nothing.")
    print(json.dumps(conditions(settings), indent=2))
    stages = {
        "raw_nats": [raw_nats(mode, loop) for loop in ("asyncio", "uvloop") for mode in RAW_ROLES],
        "faststream": [faststream("echo", "asyncio"), faststream("echo"), faststream("turn")],
        "synadia": [synadia()],
        "a2a": [a2a()],
    }
    reports: list[Report] = [
        run_stage(stage, settings, (1, 16)) for peer in peers_installed() for stage in stages[peer]
    ]
    measures = ("p50_ms", "p99_ms", "per_s", "n", "errors", "server_cpu_ms", "client_cpu_ms")
    rows = [
        [f"{r['peer']} {r['mode']}", r["loop"], cell, *(figure(r, cell, m) for m in measures)]
        for r in reports
        for cell in r["cells"]
    ]
    print(table(("contender", "loop", "in flight", *measures), rows))
    print()
    print(table(("peer", "codec", "loop", "versions"), dict.fromkeys(said_by(reports))))


if __name__ == "__main__":
    main()
