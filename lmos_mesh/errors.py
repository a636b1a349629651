"""Every error the mesh raises on purpose.

* `MeshError`
    * `InvalidMessage` (400): the other side sent something we cannot read
    * `InvalidDescription` (422): a description or registration breaks the rules
    * `NotFound` (404): what was named does not exist
        * `AgentNotFound`: no agent of that name, or none that can do what was asked
            * `ThingNotFound`: nothing of that name or id, be it an agent, a tool or another Thing
    * `Conflict` (409): it collides with what is already there or going on
    * `TooLarge` (413): over a size limit, which the message names
    * `LoopDetected` (508): a request came round too often
    * `Cancelled` (499): the caller left, or somebody called it off
    * `Unavailable` (503, retryable): nobody is there to answer
        * `NobodyAnswers`: nobody listens, so nobody has seen the request
        * `Overloaded`: somebody is there and has too much to do
    * `DeadlineExceeded` (504, retryable): no answer in time
    * `StreamBroken` (502): a reply stream lost a frame or its sender
        * `InstanceLost`: the instance that was answering has died
    * `AgentFailed` (500): the agent's own code raised
    * `HandedOver` (421): the agent says that another one should answer
    * `SettingsError`: this process cannot start as configured

Errors cross the mesh as a `code`, so each class owns one and keeps it forever; `NobodyAnswers`,
which only whoever asked can know, crosses it as `Unavailable`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

TYPE_PREFIX = "urn:lmos-mesh:error:"


class MeshError(Exception):
    """Base of every error the mesh raises on purpose.

    Args:
        message: What went wrong, naming the values involved.
        hint: What the reader can do about it.
        details: Further members for the problem document, e.g. `faults` or `candidates`.
    """

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint
        self.details: dict[str, Any] = details

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem document."""
        document: dict[str, Any] = {
            "type": f"{TYPE_PREFIX}{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.message,
            "code": self.code,
        }
        if self.hint:
            document["hint"] = self.hint
        return document | self.details


class InvalidMessage(MeshError):
    """The other side sent something that does not match the endpoint's type.

    `details["faults"]` lists every fault; without any the message is the one.
    """

    code = "invalid-message"
    title = "Invalid message"
    status = 400

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        if "faults" not in details:
            at = str(details.get("field", ""))
            said = {"field": at, "description": message.removeprefix(f"{at}: ")}
            details["faults"] = [said]
        super().__init__(message, hint=hint, **details)


class InvalidDescription(MeshError):
    """A description or registration breaks the rules; `details["faults"]` lists every fault."""

    code = "invalid-description"
    title = "Invalid description"
    status = 422

    @classmethod
    def of(cls, subject: str, faults: Iterable[Mapping[str, str]]) -> "InvalidDescription":
        """An error that names every fault at once.

        Args:
            subject: What was refused, e.g. `agent 'billing'`.
            faults: `{"field": JSON Pointer, "description": sentence}` each.
        """
        listed = [dict(fault) for fault in faults]
        said = "; ".join(
            f"{fault['field']}: {fault['description']}"
            if fault["field"]
            else f"it {fault['description']}"
            for fault in listed
        )
        return cls(f"{subject} is refused: {said}", faults=listed)


class NotFound(MeshError):
    """What was named does not exist."""

    code = "not-found"
    title = "Not found"
    status = 404


class AgentNotFound(NotFound):
    """No agent of that name is live, or none can do what was asked."""

    code = "agent-not-found"
    title = "Agent not found"


class ThingNotFound(AgentNotFound):
    """Nothing of that name or id is registered, be it an agent, a tool or another Thing."""

    code = "thing-not-found"
    title = "Thing not found"


class Conflict(MeshError):
    """It collides with what is already there or going on."""

    code = "conflict"
    title = "Conflict"
    status = 409


class TooLarge(MeshError):
    """It is over a size limit, which the message names."""

    code = "too-large"
    title = "Too large"
    status = 413


class LoopDetected(MeshError):
    """A request has passed through more processes than any honest one does."""

    code = "loop-detected"
    title = "Loop detected"
    status = 508


class Cancelled(MeshError):
    """The caller left, or somebody called it off."""

    code = "cancelled"
    title = "Cancelled"
    status = 499


class Unavailable(MeshError):
    """Nobody is there to answer."""

    code = "unavailable"
    title = "Unavailable"
    status = 503
    retryable = True


class NobodyAnswers(Unavailable):
    """Nobody listens where it was asked, so nobody has begun: asking again is always safe."""


class Overloaded(Unavailable):
    """Somebody is there and has more to do than they may queue."""

    code = "overloaded"
    title = "Overloaded"


class DeadlineExceeded(MeshError):
    """No answer came in time."""

    code = "deadline-exceeded"
    title = "Deadline exceeded"
    status = 504
    retryable = True


class StreamBroken(MeshError):
    """A reply stream lost a frame, its order, or its sender."""

    code = "stream-broken"
    title = "Stream broken"
    status = 502


class InstanceLost(StreamBroken):
    """The instance that was answering has died."""

    code = "instance-lost"
    title = "Instance lost"


class AgentFailed(MeshError):
    """The agent's own code raised; its log has the traceback."""

    code = "agent-failed"
    title = "Agent failed"


class HandedOver(MeshError):
    """The agent says that another one should answer, and the runtime asks that one.

    Whoever invokes an agent without the runtime gets this; `details` names the other one by `to`
    or by `capability`, and says in `question` what it is to be asked, if not the user's words.
    """

    code = "handed-over"
    title = "Handed over"
    status = 421


class SettingsError(MeshError):
    """This process cannot start as configured; the sentence says what to change."""

    code = "settings"
    title = "Bad settings"


def error_for(code: str, message: str, *, hint: str = "", **details: Any) -> MeshError:
    """The error a `code` stands for; an unknown code comes from a newer or foreign peer."""
    kind = _kinds().get(code, MeshError)
    return kind(message, hint=hint, **details)


def error_from_problem(problem: Mapping[str, Any], *, status: int, message: str) -> MeshError:
    """The error that a reply's problem document and its ADR-32 headers describe.

    A foreign service sends headers only, a newer peer a code that we do not know; the status then
    picks the nearest class.
    """
    kinds = _kinds()
    kind = kinds.get(str(problem.get("code")))
    if kind is None:
        by_status = {
            one.status: one for one in reversed(list(kinds.values())) if "status" in vars(one)
        }
        kind = by_status.get(status, MeshError)
    error = kind(str(problem.get("detail") or message), hint=str(problem.get("hint") or ""))
    # Not as arguments: a foreign body may call its members as our parameters are called.
    error.details.update((k, v) for k, v in problem.items() if k not in _MEMBERS)
    return error


_MEMBERS = frozenset({"type", "title", "status", "detail", "code", "hint"})


def _kinds() -> dict[str, type[MeshError]]:
    found: dict[str, type[MeshError]] = {}
    pending: list[type[MeshError]] = [MeshError]
    while pending:
        kind = pending.pop(0)
        found.setdefault(kind.code, kind)  # a subclass without a code of its own is no code's class
        pending.extend(kind.__subclasses__())
    return found
