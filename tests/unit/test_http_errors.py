"""How errors are told on each surface."""

import json

import pytest

from lmos_mesh.errors import (
    AgentFailed,
    AgentNotFound,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    InstanceLost,
    InvalidMessage,
    LoopDetected,
    MeshError,
    NotFound,
    Overloaded,
    ThingNotFound,
    TooLarge,
    Unavailable,
)
from lmos_mesh_http.errors import fault_of, http_fault, surface_of, told

ERRORS = {
    InvalidMessage: (400, "INVALID_REQUEST", "invalid_message"),
    AgentNotFound: (404, "AGENT_NOT_FOUND", "model_not_found"),
    ThingNotFound: (404, "AGENT_NOT_FOUND", "model_not_found"),
    NotFound: (404, "NOT_FOUND", "not_found"),
    Conflict: (409, "CONFLICT", "conflict"),
    Cancelled: (409, "CANCELLED", "cancelled"),
    TooLarge: (413, "TOO_LARGE", "too_large"),
    AgentFailed: (500, "AGENT_CLIENT_EXCEPTION", "agent_failed"),
    MeshError: (500, "INTERNAL_SERVER_ERROR", "internal"),
    InstanceLost: (502, "INSTANCE_LOST", "instance_lost"),
    Unavailable: (503, "UNAVAILABLE", "unavailable"),
    Overloaded: (503, "OVERLOADED", "overloaded"),
    DeadlineExceeded: (504, "DEADLINE_EXCEEDED", "deadline_exceeded"),
    LoopDetected: (508, "LOOP_DETECTED", "loop_detected"),
}


@pytest.mark.parametrize(
    ("path", "surface"),
    [
        ("/apis/v1/demo/chat/c/message", "lmos"),
        ("/apis/v1", "lmos"),
        ("/lmos/runtime/apis/v1/agents", "lmos"),
        ("/v1/chat/completions", "openai"),
        ("/v1", "openai"),
        ("/v10", "problem"),
        ("/apis/v11/x", "problem"),
        ("/readyz", "problem"),
        ("/", "problem"),
    ],
)
def test_the_path_decides_whose_form_an_error_has(path: str, surface: str):
    assert surface_of(path) == surface


@pytest.mark.parametrize("kind", ERRORS)
def test_lmos_paths_tell_a_code_and_a_message(kind: type[MeshError]):
    status, code, _ = ERRORS[kind]

    reply = told(fault_of(kind("it is so", hint="do this")), "lmos")

    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert json.loads(reply.body) == {"errorCode": code, "message": "it is so (do this)"}


@pytest.mark.parametrize("kind", ERRORS)
def test_openai_paths_tell_what_its_clients_read(kind: type[MeshError]):
    status, _, code = ERRORS[kind]

    reply = told(fault_of(kind("it is so")), "openai")

    error = json.loads(reply.body)["error"]
    assert reply.status == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")


@pytest.mark.parametrize("kind", ERRORS)
def test_elsewhere_an_error_is_a_problem_document(kind: type[MeshError]):
    status, _, _ = ERRORS[kind]

    reply = told(fault_of(kind("it is so", near=["a"])), "problem")

    problem = json.loads(reply.body)
    assert reply.headers["content-type"] == "application/problem+json"
    assert problem["status"] == reply.status == status
    assert problem["detail"] == "it is so"
    assert problem["near"] == ["a"]


def test_whoever_may_try_again_is_told_when():
    assert told(fault_of(Overloaded("busy")), "lmos").headers["retry-after"] == "1"
    assert "retry-after" not in told(fault_of(NotFound("gone")), "lmos").headers


@pytest.mark.parametrize(
    ("error", "told_not_to"),
    [
        (Overloaded("busy"), False),
        (DeadlineExceeded("late"), False),
        (AgentFailed("broke"), True),
        (InstanceLost("died"), True),
        (Conflict("another turn runs"), True),
        (NotFound("gone"), False),
    ],
)
def test_openai_clients_are_kept_from_repeating_what_may_have_been_done(
    error: MeshError, told_not_to: bool
):
    headers = told(fault_of(error), "openai").headers

    assert (headers.get("x-should-retry") == "false") is told_not_to


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("/messages/0/content", "messages[0].content"),
        ("/messages/0/content/12", "messages[0].content[12]"),
        ("/n", "n"),
        ("", None),
    ],
)
def test_the_first_field_at_fault_is_named_as_openai_names_it(field: str, param: str | None):
    error = InvalidMessage("no", faults=[{"field": field, "description": "no"}])

    body = json.loads(told(fault_of(error), "openai").body)

    assert body["error"]["param"] == param


def test_details_that_are_no_json_do_not_hide_the_error():
    reply = told(fault_of(NotFound("gone", what={1, 2})), "problem")

    assert json.loads(reply.body)["detail"] == "gone"


def test_a_fault_of_the_request_itself_has_a_code_too():
    assert json.loads(told(http_fault(405, "not so"), "lmos").body) == {
        "errorCode": "METHOD_NOT_ALLOWED",
        "message": "not so",
    }
