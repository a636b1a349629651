"""The Synadia Agent Protocol for NATS 0.3, both sides: every agent of ours speaks it.

Agents hosted with other software are asked in it. Source: synadia-ai/synadia-agent-sdk-docs,
core-protocol. The end of a reply stream is an empty message without any header, so that no
trace context goes there.
"""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from lmos_mesh.errors import (
    InvalidMessage,
    MeshError,
    StreamBroken,
    error_from_problem,
)
from lmos_mesh.subjects import escape
from lmos_mesh.things import DEFAULT_SUBSET

SERVICE = "agents"
QUEUE = "agents"
VERSION = "0.3"
OURS = "lmos"
HEARTBEATS = "agents.hb.>"
INTERVAL_S = 10
KEEP_ALIVE_S = 20.0
"""How often an agent of ours says that it is still at work."""

Chunk = dict[str, Any]


def session(agent: str, subset: str) -> str:
    """The last token of an agent's subjects."""
    name = agent if subset == DEFAULT_SUBSET else f"{agent}--{subset}"
    return escape(name)


def subject(verb: str, tenant: str, agent: str, subset: str) -> str:
    """Where one of our agents is prompted (`prompt`), asked (`status`) or heard of (`hb`)."""
    return f"agents.{verb}.{OURS}.{escape(tenant)}.{session(agent, subset)}"


def metadata(tenant: str, agent: str, subset: str) -> dict[str, str]:
    """What the micro service of one of our agents says of it."""
    return {
        "agent": OURS,
        "owner": escape(tenant),
        "session": session(agent, subset),
        "protocol_version": VERSION,
    }


def heartbeat(tenant: str, agent: str, subset: str, instance: str) -> Chunk:
    """A sign of life; the answer to `status` is the same."""
    return {
        "agent": OURS,
        "owner": escape(tenant),
        "session": session(agent, subset),
        "instance_id": instance,
        "ts": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "interval_s": INTERVAL_S,
    }


class Prompt(NamedTuple):
    """What was asked. Unknown members of the request are kept."""

    text: str
    attachments: int
    more: dict[str, Any]


def read_prompt(payload: bytes) -> Prompt:
    """A prompt: plain text, or JSON where it begins with `{`.

    Raises:
        InvalidMessage: It is empty, no UTF-8, or JSON without a `prompt`.
    """
    try:
        text = payload.decode()
    except UnicodeDecodeError as exc:
        raise InvalidMessage(f"the prompt is not UTF-8: {exc}") from None
    if not text.lstrip().startswith("{"):
        return _not_empty(Prompt(text, 0, {}))
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidMessage(f"the prompt begins with '{{' and is not JSON: {exc}") from None
    prompt = given.pop("prompt", None)
    if not isinstance(prompt, str):
        raise InvalidMessage("/prompt: must be a text", field="/prompt")
    return _not_empty(Prompt(prompt, _count(given.pop("attachments", None)), given))


def _count(attachments: Any) -> int:
    if not isinstance(attachments, list | None):
        raise InvalidMessage("/attachments: must be a list", field="/attachments")
    listed = cast("list[Any]", attachments or [])
    for at, one in enumerate(listed):
        try:
            base64.b64decode(one["content"], validate=True)
            str(one["filename"])
        except (KeyError, TypeError, ValueError):
            field = f"/attachments/{at}"
            raise InvalidMessage(
                f"{field}: needs `filename` and `content` in base64", field=field
            ) from None
    return len(listed)


def _not_empty(prompt: Prompt) -> Prompt:
    if not prompt.text.strip():
        raise InvalidMessage("the prompt is empty")
    return prompt


def acknowledged() -> bytes:
    """The first chunk of every reply."""
    return _chunk("status", "ack")


def response(text: str) -> bytes:
    """A piece of the answer."""
    return _chunk("response", text)


def _chunk(kind: str, data: Any) -> bytes:
    return json.dumps({"type": kind, "data": data}, ensure_ascii=False).encode()


def write_prompt(text: str) -> bytes:
    """A request to an agent."""
    return json.dumps({"prompt": text}, ensure_ascii=False).encode()


class Reply:
    """Reads the chunks of a reply. `done` once the end has come.

    Raises (from `read`):
        MeshError: The agent refused or failed.
        StreamBroken: It sent what is no chunk.
    """

    def __init__(self) -> None:
        self.done = False
        self.acknowledged = False

    def read(self, payload: bytes, headers: Mapping[str, str]) -> tuple[str, Any] | None:
        """(kind, data) of a `response`, `status` or `query`; None for the end and the rest."""
        if code := headers.get("Nats-Service-Error-Code"):
            said = headers.get("Nats-Service-Error", "failed without saying why")
            raise error_from_problem({}, status=int(code) if code.isdigit() else 500, message=said)
        if not payload and not headers:
            self.done = True
            return None
        try:
            chunk = json.loads(payload)
            kind, data = chunk["type"], chunk.get("data")
        except (ValueError, RecursionError, KeyError, TypeError) as exc:
            raise StreamBroken(f"the agent sent what is no chunk: {exc}") from None
        if kind == "status":
            self.acknowledged = self.acknowledged or data == "ack"
            return kind, data
        if kind == "response":
            text = cast("dict[str, Any]", data).get("text") if isinstance(data, dict) else data
            return kind, str(text or "")
        if kind == "query":
            return kind, data
        return None


def refusal(error: MeshError) -> tuple[int, str]:
    """The code and sentence of an error; the protocol knows a handful of codes."""
    known = (400, 401, 403, 404, 409, 429, 500)
    if error.status in known:
        return error.status, str(error)
    if error.status == 503:
        return 429, str(error)
    return (400, str(error)) if 400 <= error.status < 500 else (500, str(error))
