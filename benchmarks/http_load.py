"""Asks over HTTP and reads the answer as server-sent events, at hardly any cost of its own.

    python benchmarks/http_load.py --url http://127.0.0.1:8420/v1/chat/completions \
        --body '{"stream":true,"messages":[{"role":"user","content":"{question}"}], …}' \
        --text-at choices.0.delta.content --done '[DONE]' --in-flight 16

In the URL, the headers and the body, `{question}` stands for what is asked, `{worker}` for the
worker's number and `{ask}` for an id that no other ask has. Every answer must be the echo agent's.
"""

import argparse
import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from peers.closed_loop import Ask, load_options, report, run
from peers.sse_client import Connection, Response, events
from peers.work import WrongAnswer, answer, check, question

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How one server is asked, and where in its events the answer is.

    Args:
        url: Where to post to.
        headers: Beyond the content type.
        body: JSON with placeholders.
        text_at: Path of the text in an event's data, dots between; an event without it has none.
        event: Look only at events of this name; empty: at all of them.
        done: Data of the event that must be the last one; empty: any.
        last: Name of the event that must be the last one; empty: any.
    """

    url: str
    headers: Mapping[str, str]
    body: str
    text_at: str
    event: str = ""
    done: str = ""
    last: str = ""


def text_at(document: Any, path: Sequence[str]) -> str:
    """The text at a path of names and indices; empty where there is none."""
    for step in path:
        try:
            document = document[int(step) if step.isdigit() else step]
        except (LookupError, TypeError):
            return ""
    return document if isinstance(document, str) else ""


def answer_of(response: Response, form: Form) -> str:
    """The whole answer that a response carries.

    Raises:
        WrongAnswer: The response is an error, or its stream did not end as it should.
    """
    if response.status != 200:
        raise WrongAnswer(f"HTTP {response.status}: {response.body!r:.300}")
    if "event-stream" not in response.headers.get("content-type", ""):
        return text_at(json.loads(response.body), form.text_at.split("."))
    said = list(events(response.body))
    if form.done and (not said or said[-1][1] != form.done):
        raise WrongAnswer(f"the stream does not end with {form.done!r}: {response.body!r:.300}")
    if form.last and (not said or said[-1][0] != form.last):
        raise WrongAnswer(f"the last event is no {form.last!r}: {response.body!r:.300}")
    path = form.text_at.split(".")
    return "".join(
        text_at(json.loads(data), path)
        for name, data in said
        if data != form.done and form.event in ("", name)
    )


def turn(form: Form) -> Ask:
    """A question over HTTP; each worker keeps its own connection."""
    run_id = uuid.uuid4().hex[:12]
    connections: dict[int, Connection] = {}

    async def ask(worker: int, number: int) -> None:
        asked = question(worker)
        # A warm-up counts from nought too, so a number alone would come twice.
        values = {"{question}": asked, "{worker}": str(worker), "{ask}": f"{run_id}-{next(ids)}"}
        url = urlsplit(_filled(form.url, values))
        path = url.path + (f"?{url.query}" if url.query else "")
        headers = {name: _filled(value, values) for name, value in form.headers.items()}
        connection = connections.setdefault(worker, Connection())
        async with asyncio.timeout(TIMEOUT_S):
            response = await connection.post(
                url.hostname or "127.0.0.1",
                url.port or 80,
                path or "/",
                {"content-type": "application/json", **headers},
                _filled(form.body, values).encode(),
            )
        check(answer(asked), answer_of(response, form))

    ids = iter(range(1_000_000_000))
    return ask


def _filled(template: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        template = template.replace(placeholder, value)
    return template


async def load(options: argparse.Namespace) -> None:
    """Run the cells and print the report."""
    pairs = (header.partition(":") for header in options.header)
    form = Form(
        url=options.url,
        headers={name.strip().lower(): value.strip() for name, _, value in pairs},
        body=options.body,
        text_at=options.text_at,
        event=options.event,
        done=options.done,
        last=options.last,
    )
    await report(options.name, options, turn(form), codec="JSON, SSE", packages=["uvloop"])


def main() -> None:
    """Run the load and print one line of JSON."""
    parser = load_options(__doc__ or "", ("turn",))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--name", default="http", help="of the contender, in the report")
    parser.add_argument("--url", required=True)
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    parser.add_argument("--body", required=True)
    parser.add_argument("--text-at", required=True, metavar="PATH")
    parser.add_argument("--event", default="", help="look only at events of this name")
    parser.add_argument("--done", default="", help="data that the last event must have")
    parser.add_argument("--last", default="", help="name that the last event must have")
    options = parser.parse_args()
    run(options.loop, load(options))


if __name__ == "__main__":
    main()
