"""Asks the a2a-sdk server: `SendStreamingMessage` with a client so light that it hardly counts.

The SDK's own client costs more processor time than the server whose time is measured.
"""

import argparse
import asyncio
import json

from closed_loop import Ask, load_options, report, run
from sse_client import Connection, events
from work import WrongAnswer, answer, check, question

TIMEOUT_S = 30.0
HEADERS = {"content-type": "application/json", "a2a-version": "1.0", "accept": "text/event-stream"}


def request(number: int, text: str) -> bytes:
    """One `SendStreamingMessage` call."""
    message = {"messageId": f"m{number}", "role": "ROLE_USER", "parts": [{"text": text}]}
    call = {"jsonrpc": "2.0", "id": number, "method": "SendStreamingMessage"}
    return json.dumps({**call, "params": {"message": message}}).encode()


def answer_of(body: bytes) -> str:
    """The text of the streamed artifact of a task that was completed.

    Raises:
        WrongAnswer: The stream does not end with a completed task.
    """
    results = [json.loads(data).get("result", {}) for _, data in events(body)]
    state = results[-1].get("statusUpdate", {}).get("status", {}).get("state") if results else None
    if state != "TASK_STATE_COMPLETED":
        raise WrongAnswer(f"the task was not completed: {body!r:.300}")
    updates = [result["artifactUpdate"] for result in results if "artifactUpdate" in result]
    return "".join(part["text"] for update in updates for part in update["artifact"]["parts"])


def turn(port: int) -> Ask:
    """A message whose answer is a streamed task; each worker keeps its own connection."""
    connections: dict[int, Connection] = {}

    async def ask(worker: int, number: int) -> None:
        asked = question(worker)
        connection = connections.setdefault(worker, Connection())
        async with asyncio.timeout(TIMEOUT_S):
            response = await connection.post(
                "127.0.0.1", port, "/", HEADERS, request(number, asked)
            )
        check(200, response.status)
        check(answer(asked), answer_of(response.body))

    return ask


async def load(options: argparse.Namespace) -> None:
    """Run the cells and print the report."""
    packages = ["a2a-sdk", "uvloop"]
    await report("a2a", options, turn(options.port), codec="JSON-RPC, SSE", packages=packages)


def main() -> None:
    """Run the load and print one line of JSON."""
    parser = load_options(__doc__ or "", ("turn",))
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    run(options.loop, load(options))


if __name__ == "__main__":
    main()
