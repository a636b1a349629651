from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import errors
from lmos_mesh.errors import (
    AgentNotFound,
    Conflict,
    InstanceLost,
    InvalidDescription,
    InvalidMessage,
    MeshError,
    NobodyAnswers,
    NotFound,
    Overloaded,
    SettingsError,
    StreamBroken,
    Unavailable,
    error_for,
    error_from_problem,
)


def every_kind() -> Iterator[type[MeshError]]:
    pending: list[type[MeshError]] = [MeshError]
    while pending:
        kind = pending.pop()
        if kind.__module__.startswith("lmos_mesh") and "code" in vars(kind):
            yield kind
        pending.extend(kind.__subclasses__())


EVERY_KIND = {kind.__name__: kind for kind in every_kind()}

kinds = pytest.mark.parametrize("kind", [EVERY_KIND[name] for name in sorted(EVERY_KIND)])


def test_every_kind_owns_a_code_that_no_other_has() -> None:
    codes = [kind.__dict__["code"] for kind in every_kind()]

    assert len(codes) == len(set(codes))
    assert all(code == code.lower() and " " not in code for code in codes)


@kinds
def test_an_error_comes_back_from_its_problem_as_the_same_class(kind: type[MeshError]) -> None:
    error = kind("what went wrong", hint="what to do", candidates=["a"], limit=5)

    again = error_from_problem(error.problem(), status=error.status, message="from the header")

    assert type(again) is kind
    assert (again.message, again.hint, again.details) == (error.message, error.hint, error.details)
    assert str(again) == "what went wrong (what to do)"
    assert again.problem() == error.problem()


def test_that_nobody_answers_is_told_to_others_as_unavailable() -> None:
    error = NobodyAnswers("nobody answers on 'x'")

    again = error_from_problem(error.problem(), status=error.status, message="")

    assert type(again) is Unavailable  # or whoever hears of it would ask for it once more


def test_a_problem_document_is_as_rfc_9457_has_it() -> None:
    assert AgentNotFound("no agent 'x'", hint="try y", candidates=["y"]).problem() == {
        "type": "urn:lmos-mesh:error:agent-not-found",
        "title": "Agent not found",
        "status": 404,
        "detail": "no agent 'x'",
        "code": "agent-not-found",
        "hint": "try y",
        "candidates": ["y"],
    }
    assert "hint" not in NotFound("x").problem()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidMessage),
        (404, NotFound),
        (409, Conflict),
        (422, InvalidDescription),
        (502, StreamBroken),
        (503, Unavailable),
        (500, MeshError),
        (418, MeshError),
        (0, MeshError),
    ],
)
def test_a_foreign_services_status_picks_the_nearest_class(
    status: int, kind: type[MeshError]
) -> None:
    error = error_from_problem({}, status=status, message="said in the header")

    assert type(error) is kind
    assert error.message == "said in the header"


def test_a_code_of_a_newer_peer_is_judged_by_its_status_and_keeps_its_words() -> None:
    problem = {"code": "quota-exceeded", "detail": "too many", "hint": "wait", "left": 0}

    error = error_from_problem(problem, status=503, message="header")

    assert type(error) is Unavailable
    assert (error.message, error.hint, error.details) == ("too many", "wait", {"left": 0})


def test_a_foreign_body_may_call_its_members_as_our_parameters_are_called() -> None:
    body: dict[str, Any] = {
        "message": "taken",
        "self": 1,
        "hint": None,
        "detail": None,
        "kind": [],
        "code": 409,
    }

    error = error_from_problem(body, status=409, message="from the header")

    assert type(error) is Conflict
    assert error.message == "from the header"
    assert error.hint == ""
    assert error.details == {"message": "taken", "self": 1, "kind": []}


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
members = st.sampled_from(
    ["type", "title", "status", "detail", "code", "hint", "message", "self", "details", "kind"]
)


@given(st.dictionaries(members | st.text(), json_like, max_size=6), st.integers(-1, 999), st.text())
def test_whatever_another_sends_as_a_problem_is_some_error(
    problem: dict[str, Any], status: int, message: str
) -> None:
    error = error_from_problem(problem, status=status, message=message)

    assert isinstance(error, MeshError)
    assert isinstance(str(error), str)
    assert isinstance(error.problem(), dict)


def test_a_subclass_of_ones_own_does_not_take_over_the_code_it_inherits() -> None:
    class MineAlone(NotFound):
        """A subclass in somebody's own code."""

    assert type(error_for("not-found", "x")) is NotFound
    assert type(error_from_problem(MineAlone("x").problem(), status=404, message="")) is NotFound


def test_an_unknown_code_is_a_mesh_error() -> None:
    assert type(error_for("never-heard-of", "x", limit=1)) is MeshError


def test_only_what_may_succeed_when_repeated_is_retryable() -> None:
    retryable = {kind.__name__ for kind in every_kind() if kind.retryable}

    assert retryable >= {"Unavailable", "Overloaded", "DeadlineExceeded"}
    assert not retryable & {"InvalidMessage", "NotFound", "Conflict", "TooLarge", "LoopDetected"}


def test_kinds_of_one_thing_are_caught_together() -> None:
    assert issubclass(AgentNotFound, NotFound)
    assert issubclass(Overloaded, Unavailable)
    assert issubclass(InstanceLost, StreamBroken)
    assert not issubclass(SettingsError, Unavailable)


def test_a_refusal_names_every_fault_at_once() -> None:
    error = InvalidDescription.of(
        "agent 'billing'",
        [
            {"field": "/version", "description": "is no semver"},
            {"field": "", "description": "is no object"},
        ],
    )

    assert str(error) == ("agent 'billing' is refused: /version: is no semver; it is no object")
    assert [fault["field"] for fault in error.details["faults"]] == ["/version", ""]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    said = errors.__doc__ or ""

    for kind in every_kind():
        if kind.__module__ == "lmos_mesh.errors":
            assert f"`{kind.__name__}`" in said
