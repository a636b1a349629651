"""What may be named, how bodies are read, and which headers are taken."""

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from lmos_mesh.errors import InvalidMessage, SettingsError, TooLarge
from lmos_mesh.settings import load_settings
from lmos_mesh_http.bodies import is_json, read_json
from lmos_mesh_http.edge import Edge, trace_of
from lmos_mesh_http.errors import fault_of, openai_body
from lmos_mesh_http.openai import ChatCompletionRequest
from lmos_mesh_http.parameters import LONGEST, name
from lmos_mesh_http.server import listen, url_of
from lmos_mesh_http.service import HttpSettings

BODY = b'{"model":"auto","messages":[{"role":"user","content":"hi"}]}'
JSON = [(b"content-type", b"application/json; charset=utf-8")]


def request(*parts: bytes, headers: list[tuple[bytes, bytes]] = JSON) -> Request:
    """A request whose body comes in parts."""
    waiting = list(parts)

    async def receive() -> dict[str, Any]:
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=LONGEST))
def test_any_printable_name_may_be_used(given_name: str):
    assert name(given_name, "conversationId") == given_name


@pytest.mark.parametrize("bad", ["", "x" * (LONGEST + 1), "a\nb", "a\n", "\x00", "\x7f"])
def test_a_name_that_could_break_a_subject_is_refused(bad: str):
    with pytest.raises(InvalidMessage, match="conversationId"):
        name(bad, "conversationId")


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        ("application/json", True),
        ("Application/JSON ; charset=utf-8", True),
        ("application/ld+json", True),
        ("", False),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("text/x+json", False),
    ],
)
def test_only_json_is_taken_so_that_no_web_page_can_post_unasked(content_type: str, taken: bool):
    assert is_json(content_type) is taken


async def test_a_body_may_come_in_parts():
    read = await read_json(request(BODY[:9], b"", BODY[9:]), ChatCompletionRequest, limit=100)

    assert read.messages[0].content == "hi"


@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        (b"{", '"message":"the body cannot be used: it is no JSON: ', "null"),
        (
            b'{"model":"auto","messages":[]}',
            "the body cannot be used: /messages: must have at least 1 item",
            '"messages"',
        ),
        (
            b'{"model":"auto","messages":[{"role":"user","content":5}]}',
            "the body cannot be used: /messages/0/content: must be a string or an array",
            '"messages[0].content"',
        ),
    ],
)
async def test_what_is_wrong_with_a_body_is_told_without_a_word_of_python(
    body: bytes, said: str, param: str
):
    with pytest.raises(InvalidMessage) as refused:
        await read_json(request(body), ChatCompletionRequest, limit=1000)

    told = openai_body(fault_of(refused.value)).decode()
    assert said in told
    assert f'"param":{param},' in told
    assert "tuple" not in told.lower()
    assert "Input" not in told


async def test_another_content_type_is_refused_with_what_to_send():
    with pytest.raises(HTTPException, match="application/json") as caught:
        await read_json(request(BODY, headers=[]), ChatCompletionRequest, limit=100)

    assert caught.value.status_code == 415


async def test_a_packed_body_is_refused():
    headers = [*JSON, (b"content-encoding", b"gzip")]

    with pytest.raises(HTTPException, match="gzip") as caught:
        await read_json(request(BODY, headers=headers), ChatCompletionRequest, limit=100)

    assert caught.value.status_code == 415


async def test_a_body_over_the_limit_is_refused_before_all_of_it_has_come():
    with pytest.raises(TooLarge, match="10 bytes"):
        await read_json(request(b"x" * 8, b"x" * 8, b"x" * 8), ChatCompletionRequest, limit=10)


async def test_a_body_that_says_it_is_too_large_is_not_read():
    headers = [*JSON, (b"content-length", b"99999999999999999999999")]

    with pytest.raises(TooLarge):
        await read_json(request(headers=headers), ChatCompletionRequest, limit=10)


async def ask(headers: list[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], dict[str, str]]:
    """The headers of the response, and the trace that is passed on."""
    passed_on: dict[str, str] = {}
    got: dict[bytes, bytes] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed_on.update(trace_of(Request(scope)))
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def send(message: Any) -> None:
        got.update(message["headers"])

    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    await Edge(app)(scope, request().receive, send)
    return got, passed_on


async def test_every_response_has_an_id_of_its_own():
    first, _ = await ask([])
    second, _ = await ask([])

    assert first[b"x-request-id"].startswith(b"req_")
    assert first[b"x-request-id"] != second[b"x-request-id"]


@pytest.mark.parametrize(
    ("brought", "kept"),
    [(b"abc-1", True), (b"", False), (b"a b", False), (b"x" * 129, False), (b"\xff", False)],
)
async def test_a_request_that_brings_a_sound_id_keeps_it(brought: bytes, kept: bool):
    got, _ = await ask([(b"x-request-id", brought)])

    assert (got[b"x-request-id"] == brought) is kept


async def test_a_trace_goes_on_unchanged_where_none_is_recorded():
    parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    got, passed_on = await ask([(b"traceparent", parent), (b"tracestate", b"a=1,b=2")])

    assert passed_on == {"traceparent": parent.decode(), "tracestate": "a=1,b=2"}
    assert b"traceparent" not in got


@given(st.binary(max_size=60).filter(lambda raw: b"\n" not in raw))
async def test_nothing_but_a_traceparent_is_passed_on_as_one(raw: bytes):
    _, passed_on = await ask([(b"traceparent", raw)])

    assert set(passed_on.get("traceparent", "")) <= set(string.printable)


def test_a_taken_port_is_named_with_what_to_do():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]

        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}.*LMOS_HTTP_PORT"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "x" * 300])
def test_a_host_that_is_not_ours_is_refused(host: str):
    with pytest.raises(SettingsError, match="LMOS_HTTP_"):
        listen(host, 0)


def test_the_url_is_one_that_a_browser_takes():
    with listen("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_settings_come_from_the_environment_and_are_checked():
    settings = load_settings(HttpSettings, {"LMOS_HTTP_PORT": "0", "LMOS_HTTP_HOST": "::1"})

    assert (settings.http_port, settings.http_host) == (0, "::1")
    assert HttpSettings().http_host == "127.0.0.1"
    assert HttpSettings().http_port == 8420
    with pytest.raises(SettingsError, match="LMOS_HTTP_PORT"):
        load_settings(HttpSettings, {"LMOS_HTTP_PORT": "99999"})
