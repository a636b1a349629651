import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import subjects

TOKEN = re.compile(r"[A-Za-z0-9_-]+\Z")

# What a random text hardly ever is, and an attacker or a careless person is at once.
AWKWARD = ["", "*", ">", ".", "a.b", "a b", "_x", "_X", "_xabc", "_x_x", "_xc5n66", "a\n", "\x00"]
ids = st.one_of(
    st.text(),
    st.text(alphabet="_xX-aA0.*> "),
    st.sampled_from(AWKWARD),
    st.text(alphabet=st.characters(categories=["Cs", "Lu", "Zs", "So"])),
)


@given(ids)
def test_a_token_is_always_one_that_nats_takes_and_leads_back_to_its_id(name: str) -> None:
    token = subjects.escape(name)

    assert TOKEN.match(token)
    assert subjects.unescape(token) == name


@given(ids, ids)
def test_no_two_ids_share_a_token(one: str, other: str) -> None:
    assert (subjects.escape(one) == subjects.escape(other)) == (one == other)


@given(st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True).filter(lambda one: one[:2] != "_x"))
def test_a_plain_id_is_its_own_token(name: str) -> None:
    assert subjects.escape(name) == name


@given(ids)
def test_any_token_can_be_read_even_one_that_nobody_escaped(token: str) -> None:
    assert isinstance(subjects.unescape(token), str)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("billing", "billing"),
        ("", "_x"),
        ("a.b", "_xc4n64"),
        ("_xabc", "_xbts62oj3"),
        ("ß", "_xoefg"),
    ],
)
def test_tokens_are_as_documented(name: str, token: str) -> None:
    assert subjects.escape(name) == token


@given(st.lists(ids, min_size=1, max_size=4))
def test_a_key_leads_back_to_its_ids(names: list[str]) -> None:
    key = subjects.key(*names)

    assert key.count(".") == len(names) - 1
    assert subjects.ids_of(key) == tuple(names)


@given(ids, ids)
def test_a_connection_name_leads_back_to_whose_it_is(tenant: str, instance: str) -> None:
    found = subjects.instance_of_connection(subjects.connection_name(tenant, instance))

    assert found == (tenant, instance)


@pytest.mark.parametrize("name", ["", "lmos", "lmos/a", "lmos//b", "lmos/a/b/c", "x/a/b", "/a/b"])
def test_somebody_elses_connection_is_nobodys_instance(name: str) -> None:
    assert subjects.instance_of_connection(name) is None


@given(ids, ids)
def test_an_inbox_leads_back_to_the_instance_that_listens_there(tenant: str, name: str) -> None:
    assert subjects.instance_of_inbox(f"{subjects.inbox(tenant, name)}17") == name


@pytest.mark.parametrize("reply", ["", "_INBOX.abc", "_INBOX.abc.1", "a.b.c.d", "_INBOX.a.b.c.d"])
def test_a_foreign_inbox_is_nobodys_instance(reply: str) -> None:
    assert subjects.instance_of_inbox(reply) is None


@given(ids, ids, ids, ids)
def test_every_subject_has_its_tenant_as_second_token(
    tenant: str, agent: str, subset: str, action: str
) -> None:
    for subject, tokens in (
        (subjects.agent(tenant, agent, subset), 6),
        (subjects.agent_invoke(tenant, agent, subset, action), 7),
        (subjects.instance(tenant, agent, "cancel"), 5),
        (subjects.event(tenant, agent, action), 5),
        (subjects.audit(tenant, action), 4),
    ):
        assert subject.count(".") == tokens - 1
        assert subject.startswith(f"lmos.{subjects.escape(tenant)}.")
        assert subjects.tenant_of(subject) == tenant


def test_what_has_no_second_token_has_no_tenant() -> None:
    assert subjects.tenant_of("lmos") == ""
    assert subjects.tenant_of("") == ""


def test_wildcards_stay_wildcards_in_a_change_feed_and_nowhere_else() -> None:
    assert subjects.changed("*", "registry", "*", "*") == "lmos.*.changed.registry.*.*"
    assert subjects.changed("demo", "lease", ">") == "lmos.demo.changed.lease.>"
    assert "*" not in subjects.event("*", "*", "*")
    assert ">" not in subjects.agent_invoke(">", ">", ">", ">")


def test_an_instance_is_reached_by_any_tenant_under_one_pattern() -> None:
    assert subjects.instance_in_any_tenant("a.b") == "lmos.*.instance._xc4n64.*"


def test_a_subject_tells_the_agent_that_answers_there() -> None:
    assert subjects.agent_of(subjects.agent_invoke("demo", "a b", "stable", "act")) == "a b"
    assert subjects.agent_of("lmos.demo.runtime.converse") == ""
    assert subjects.agent_of("agents.prompt.lmos.demo.billing") == ""
