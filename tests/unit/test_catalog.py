"""Which Things fit a question, and in which order."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import subjects
from lmos_mesh.description import describe
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.liveness import Lease, Served
from lmos_mesh.membership import Membership
from lmos_mesh.messages import FindThings
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import ThingKey
from lmos_mesh_registry import jsonpaths
from lmos_mesh_registry.catalog import NEAREST, Scores, candidates, find, search, shown
from lmos_mesh_registry.jsonpaths import fitting

billing: dict[str, Any] = {
    "name": "billing",
    "version": "1.2.0",
    "description": "Answers questions about bills.",
    "capabilities": [
        {
            "id": "view-bill",
            "name": "View bill",
            "version": "1.4.2",
            "examples": ["show my invoice"],
            "tags": ["money"],
        },
        {"id": "pay", "version": "2.0.0-rc.1", "description": "Pays a bill."},
    ],
    "supported_channels": ["web", "ivr"],
}
weather: dict[str, Any] = {
    "name": "weather",
    "description": "Tells the weather.",
    "capabilities": [{"id": "forecast", "version": "1.0.0"}],
}


def registered(*things: dict[str, Any], live: tuple[str, ...] = ()) -> Membership:
    membership = Membership()
    for revision, raw in enumerate(things, start=1):
        thing = thing_from({"tenant": "demo", **raw})
        value = json.dumps(describe(thing)).encode()
        membership.apply_entry(
            subjects.key(thing.tenant, thing.name, thing.subset), value, revision
        )
        if not live or thing.name in live:
            served = (Served(name=thing.name, subset=thing.subset, version=thing.version),)
            lease = Lease(instance=f"i-{revision}", things=served, host="h", pid=7, started=3.0)
            key = subjects.key(thing.tenant, lease.instance)
            membership.apply_lease(key, lease.model_dump_json().encode(), revision)
    return membership


def names(membership: Membership, *, tenant: str = "demo", **wanted: Any) -> list[str]:
    found = find(membership, tenant, FindThings(**wanted))
    return [one.key.name for one, _ in found.entries]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ["billing", "weather"]),
        ({"name": "billing"}, ["billing"]),
        ({"name": "bill"}, []),
        ({"capability": "view-bill"}, ["billing"]),
        ({"capability": "View bill"}, ["billing"]),
        ({"capability": "view bill"}, []),
        ({"capability": "view-bill", "version": "^1.2"}, ["billing"]),
        ({"capability": "view-bill", "version": ">=1.4.2 <2"}, ["billing"]),
        ({"capability": "view-bill", "version": "[1.0,2.0["}, ["billing"]),
        ({"capability": "view-bill", "version": "1.4.+"}, ["billing"]),
        ({"capability": "view-bill", "version": "~1.3"}, []),
        ({"capability": "view-bill", "version": "2.x || 1.4.2"}, ["billing"]),
        ({"capability": "pay", "version": "2.x"}, []),  # a candidate for a release is none
        ({"capability": "pay", "version": ">=2.0.0-rc.0"}, ["billing"]),
        ({"channel": "ivr"}, ["billing", "weather"]),  # weather serves every channel
        ({"channel": "fax"}, ["weather"]),
        ({"subset": "canary"}, []),
        ({"kind": "tool"}, []),
        ({"channel": "web", "capability": "forecast", "name": "weather"}, ["weather"]),
    ],
)
def test_every_given_condition_must_hold(wanted: dict[str, Any], expected: list[str]) -> None:
    assert names(registered(billing, weather), **wanted) == expected


def test_things_of_other_tenants_are_never_found() -> None:
    membership = registered(billing, {**weather, "tenant": "acme"})

    assert names(membership) == ["billing"]
    assert names(membership, tenant="acme") == ["weather"]
    assert names(membership, tenant="*") == []


def test_only_what_is_live_is_found_unless_asked_otherwise() -> None:
    membership = registered(billing, weather, live=("weather",))

    assert names(membership) == ["weather"]
    assert names(membership, live=False) == ["billing"]
    assert names(membership, live=None) == ["billing", "weather"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weather bills", ["billing", "weather"]),
        ("the WEATHER, please", ["weather"]),
        ("invoice", ["billing"]),  # an example says so
        ("money", ["billing"]),  # a tag says so
        ("view_bill", ["billing"]),
        ("nothing like it", []),
        ("?!", []),
    ],
)
def test_text_finds_whoever_shares_words_with_it(text: str, expected: list[str]) -> None:
    assert names(registered(billing, weather), text=text) == expected


def test_whoever_shares_most_words_comes_first() -> None:
    membership = registered(billing, weather)

    assert names(membership, text="tells the weather about bills") == ["weather", "billing"]


def test_the_limit_cuts_the_list_and_not_the_count() -> None:
    found = find(registered(billing, weather), "demo", FindThings(limit=1))

    assert [one.key.name for one, _ in found.entries] == ["billing"]
    assert found.total == 2


@pytest.mark.parametrize(
    "wanted", [{"capability": "view-bill", "version": "not a range"}, {"version": "^1.0"}]
)
def test_a_range_that_cannot_be_used_is_refused_by_name(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage, match="/version"):
        find(Membership(), "demo", FindThings(**wanted))


def test_a_thing_is_shown_with_its_instances_and_its_description_if_asked() -> None:
    membership = registered(billing)
    entered = membership.get(ThingKey("demo", "billing", "stable"))
    assert entered is not None

    brief = shown(entered, membership, whole=False)
    whole = shown(entered, membership, whole=True)

    assert brief.live
    assert [(one.instance, one.version, one.pid) for one in brief.instances] == [
        ("i-1", "1.2.0", 7)
    ]
    assert brief.description is None
    assert [one.id for one in brief.capabilities] == ["view-bill", "pay"]
    assert brief.channels == ("web", "ivr")
    assert whole.description == entered.description


texts = st.text(alphabet="ab _", max_size=6)


@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(["demo", "acme"]), texts)),
    st.builds(
        FindThings,
        name=st.none() | st.sampled_from("xyz"),
        text=st.none() | texts,
        live=st.none() | st.booleans(),
        limit=st.integers(1, 3),
    ),
)
def test_what_is_found_is_a_part_of_what_is_there_in_a_fixed_order(
    things: list[tuple[str, str, str]], wanted: FindThings
) -> None:
    membership = registered(
        *({"name": name, "tenant": tenant, "description": said} for name, tenant, said in things)
    )

    found = find(membership, "demo", wanted)
    entries = [one for one, _ in found.entries]

    assert found == find(membership, "demo", wanted)
    assert len(entries) == min(found.total, wanted.limit)
    assert all(one.key.tenant == "demo" for one in entries)
    assert all(wanted.name in (None, one.key.name) for one in entries)
    assert all(wanted.live in (None, membership.live(one.key)) for one in entries)


# -- more conditions --

lamp: dict[str, Any] = {
    "name": "lamp-guide",
    "kind": "tool",
    "version": "2.0.0",
    "capabilities": [{"id": "light", "tags": ["home", "money"]}],
    "metadata": {"vendor": {"name": "ACME", "since": 1}, "a.b": {"c": [True, {"d": None}]}},
    "origin": "north",
}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"tags": ["money"]}, ["billing", "lamp-guide"]),
        ({"tags": ["money", "home"]}, ["lamp-guide"]),
        ({"tags": ["money", "nothing"]}, []),
        ({"id": "urn:lmos-mesh:demo:weather:stable"}, ["weather"]),
        ({"id": "urn:lmos-mesh:acme:weather:stable"}, []),
        ({"kind": "tool"}, ["lamp-guide"]),
        ({"origin": ""}, ["billing", "weather"]),
        ({"origin": "north"}, ["lamp-guide"]),
        ({"metadata": {"vendor.name": "ACME"}}, ["lamp-guide"]),
        ({"metadata": {"vendor.name": "acme"}}, []),
        ({"metadata": {"vendor": {"since": 1.0, "name": "ACME"}}}, ["lamp-guide"]),
        ({"metadata": {"vendor.since": True}}, []),  # 1 is not true
        ({"metadata": {"vendor.since": 1, "vendor.name": "ACME"}}, ["lamp-guide"]),
        ({"metadata": {"vendor.name.first": "ACME"}}, []),
        ({"metadata": {"a.b.c": [True, {"d": None}]}}, ["lamp-guide"]),  # a name with a dot
        ({"metadata": {"a.b.c": [1, {"d": None}]}}, []),
        ({"metadata": {"a.b.c": [True]}}, []),
        ({"jsonpath": "$[?@.title == 'billing']"}, ["billing"]),
        ({"jsonpath": "@.title == 'billing'"}, ["billing"]),
        ({"jsonpath": "!@['lmos:metadata']"}, ["billing", "weather"]),
        ({"jsonpath": "@['lmos:metadata'].vendor.since > 0"}, ["lamp-guide"]),
        ({"jsonpath": "@['lmos:capabilities'][?@.version == '1.4.2']"}, ["billing"]),
        ({"jsonpath": "match(@.title, 'w.*r')"}, ["weather"]),
        ({"jsonpath": "search(@.title, 'i.+i')", "tags": ["money"]}, ["billing"]),
        ({"jsonpath": "match(@.title, '(')"}, []),  # no I-Regexp, which is no error
        ({"jsonpath": "$[?@.title == $[0].title]", "name": "weather"}, ["weather"]),
        ({"sort": "version"}, ["weather", "billing", "lamp-guide"]),
        ({"sort": "version", "descending": True}, ["lamp-guide", "billing", "weather"]),
        ({"sort": "name", "descending": True}, ["weather", "lamp-guide", "billing"]),
        ({"sort": "id", "offset": 1}, ["lamp-guide", "weather"]),
        ({"offset": 1, "limit": 1}, ["lamp-guide"]),
        ({"offset": 7}, []),
    ],
)
def test_conditions_of_every_kind_combine(wanted: dict[str, Any], expected: list[str]) -> None:
    assert names(registered(billing, weather, lamp), **wanted) == expected


def test_every_fault_of_a_question_is_named_with_its_field() -> None:
    wanted = FindThings(
        version="no range", jsonpath="@.a ==", sort="score", metadata={"a..b/c": 1, ".": 2}
    )

    with pytest.raises(InvalidMessage) as caught:
        find(Membership(), "demo", wanted)

    faults = caught.value.details["faults"]
    assert [one["field"] for one in faults] == [
        "/version",
        "/version",
        "/jsonpath",
        "/sort",
        "/metadata/a..b~1c",
        "/metadata/.",
    ]
    assert "/jsonpath: " in caught.value.message


@pytest.mark.parametrize(
    "path",
    [
        "",
        "title == 'x'",
        "$[?@.a = 1]",
        "$.a | $.b",
        "$[?@.a in [1]]",
        "$[?startswith(@.a, 'b')]",
        "$[?" + "(" * 1500 + "1==1" + ")" * 1500 + "]",
        "@.a == '" + "x" * 5000 + "'",
    ],
)
def test_what_is_no_jsonpath_of_the_standard_is_refused(path: str) -> None:
    with pytest.raises(InvalidMessage, match="/jsonpath"):
        find(registered(billing), "demo", FindThings(jsonpath=path))


def at(moment: int) -> dict[str, str]:
    return {
        "created": f"2026-01-0{moment}T00:00:00Z",
        "modified": f"2026-02-0{9 - moment}T00:00:00Z",
    }


def test_what_came_first_comes_first_if_asked_for() -> None:
    membership = Membership()
    for revision, (raw, moment) in enumerate(((billing, 2), (weather, 1)), start=1):
        thing = thing_from({"tenant": "demo", **raw})
        value = json.dumps({**describe(thing), "registration": at(moment)}).encode()
        membership.apply_entry(thing.key, value, revision)

    assert names(membership, live=None, sort="created") == ["weather", "billing"]
    assert names(membership, live=None, sort="modified") == ["billing", "weather"]


def test_the_least_loaded_comes_first_if_asked_for_and_who_is_not_there_last() -> None:
    membership = registered(billing, weather, lamp, live=("billing", "weather"))
    for revision, (name, busy) in enumerate((("billing", 3), ("weather", 1)), start=10):
        served = (Served(name=name, subset="stable", in_flight=busy, concurrency=4),)
        lease = Lease(instance=f"i-{1 if name == 'billing' else 2}", things=served)
        key = subjects.key("demo", lease.instance)
        membership.apply_lease(key, lease.model_dump_json().encode(), revision)

    found = names(membership, live=None, sort="load")

    assert found == ["weather", "billing", "lamp-guide"]


# -- texts --


@pytest.mark.parametrize("text", ["Lamp Guide", "lamp_guide", "  LAMP-guide! "])
def test_an_exact_name_comes_first_however_it_was_compared(text: str) -> None:
    membership = registered(billing, weather, lamp)
    near = Scores({one.key: 0.9 for one in membership if one.key.name == "billing"})

    by_words = find(membership, "demo", FindThings(text=text))
    by_meaning = find(membership, "demo", FindThings(text=text), scores=near)

    for found in (by_words, by_meaning):
        first, score = found.entries[0]
        assert (first.key.name, score) == ("lamp-guide", 1.0)


def test_rare_words_weigh_more_than_common_ones() -> None:
    things = [
        {"name": f"a{number}", "description": "looks after the garden"} for number in range(9)
    ]
    membership = registered(*things, {"name": "z", "description": "orchids"})

    assert names(membership, text="the garden orchids")[0] == "z"


def test_what_shares_only_words_that_all_use_is_not_found() -> None:
    things = [
        {"name": f"a{number}", "description": "looks after a garden"} for number in range(200)
    ]
    membership = registered(*things, {"name": "z", "description": "a garden of orchids"})

    assert names(membership, text="a garden, orchids") == ["z"]
    assert len(names(membership, text="a garden")) == 201


def test_no_more_than_the_best_are_near_a_text_and_replicas_agree_which() -> None:
    flowers = ("roses", "ivy", "ferns", "moss")
    things = [
        {
            "name": f"a{number:03}",
            "description": flowers[number % 4] + (", thorny" if number % 9 == 0 else ""),
        }
        for number in range(NEAREST * 2)
    ]
    wanted = FindThings(text="roses, ivy, moss, thorny", limit=NEAREST)

    best = find(registered(*things), "demo", wanted)

    found = [one.key.name for one, _ in best.entries]
    assert best.total == len(found) == NEAREST
    # Those with two of the words come first, then some of the very many with one.
    both = [thing["name"] for at, thing in enumerate(things) if at % 9 == 0 and at % 4 != 2]
    assert found[: len(both)] == both
    again = find(registered(*reversed(things)), "demo", wanted)
    assert [one.key.name for one, _ in again.entries] == found


def test_whoever_fits_is_found_behind_all_that_are_nearer_and_do_not() -> None:
    things = [{"name": f"a{number:03}", "description": "ivy, ivy"} for number in range(NEAREST * 2)]
    membership = registered({"name": "z", "description": "ivy and roses"}, *things, live=("z",))

    assert names(membership, text="ivy") == ["z"]


def test_meaning_decides_where_it_is_known_and_words_for_the_rest() -> None:
    membership = registered(billing, weather, lamp)
    keys = {one.key.name: one.key for one in membership}
    scores = Scores({keys["weather"]: 0.4}, pending=[keys["billing"]], total=3)

    found = find(membership, "demo", FindThings(text="my invoice"), scores=scores)

    assert found.matched == "meaning"
    assert {one.key.name for one, _ in found.entries} == {"billing", "weather"}
    assert found.total == 2
    assert found.notes == ("1 of 3 not embedded yet; those were compared by words",)


def test_conditions_hold_for_what_is_near_in_meaning_too() -> None:
    membership = registered(billing, weather, {**weather, "tenant": "acme"})
    scores = Scores({one.key: 0.5 for one in membership})

    found = find(membership, "demo", FindThings(text="x", capability="forecast"), scores=scores)

    assert [(one.key.name, score) for one, score in found.entries] == [("weather", 0.5)]


def test_without_a_text_nothing_was_compared() -> None:
    found = find(registered(billing), "demo", FindThings(), scores=Scores({}))

    assert found.matched == ""
    assert [score for _, score in found.entries] == [None]


def test_what_fits_a_jsonpath_may_be_known_already() -> None:
    membership = registered(billing, weather)
    wanted = FindThings(jsonpath="@.title == 'billing'", text="weather bills")
    fit = fitting(candidates(membership, "demo", wanted), "@.title == 'billing'")

    found = find(membership, "demo", wanted, fitting=fit)

    assert [one.key.name for one, _ in found.entries] == ["billing"]
    assert find(membership, "demo", wanted, fitting=[]).total == 0


plain_texts = st.sampled_from(["billing", "weather", "Lamp guide", "nobody", "it's", ""])


@given(
    plain_texts,
    st.sampled_from(
        [
            "@.title == {}",
            "{} == @['title']",
            "@.id == {}",
            "@.title == {} && @.version.instance == '1.2.0'",
            "@.title == {} && @.title == 'billing'",
            "@.title == {} || @.id == 'urn:dev:ops:7'",
            "!(@.title == {})",
            "@.title != {}",
            "@..title == {}",
        ]
    ),
)
def test_filters_by_name_find_what_they_find_in_the_descriptions(name: str, form: str) -> None:
    untitled = {**billing, "name": "b2", "title": "billing"}
    thing = {"kind": "thing", "name": "urn:dev:ops:7", "title": "weather"}
    membership = registered(billing, weather, lamp, untitled, thing)
    text = form.format("'" + name.replace("'", "\\'") + "'")
    things = sorted(membership, key=lambda one: one.key)

    try:
        found = fitting(things, text)
    except InvalidMessage:  # a descendant is no single value to compare
        return

    path = jsonpaths.search
    wanted = [one for one in things if path([one], f"$[?{text}]", 9)[1]]
    assert found == wanted


def test_a_filter_by_title_makes_no_descriptions_of_the_others() -> None:
    things = [{"name": f"a{number}"} for number in range(200)]

    (found,) = fitting(list(registered(*things)), "@.title == 'a7'", steps=50)

    assert found.key.name == "a7"


# -- JSONPath over everything --


def test_the_array_of_all_descriptions_is_in_order_of_their_ids() -> None:
    membership = registered(weather, billing, {**billing, "name": "Zoo"}, {**lamp, "name": "zoo"})
    registered_elsewhere = {**lamp, "tenant": "acme"}
    membership.apply_entry(
        "acme.lamp-guide.stable",
        json.dumps(describe(thing_from(registered_elsewhere))).encode(),
        9,
    )

    values, total = search(membership, "demo", "$[*].title", 10)

    # By code points, so capitals come first.
    assert values == ["Zoo", "billing", "weather", "zoo"]
    assert total == 4
    assert search(membership, "demo", "$..['lmos:capabilities'][?@.tags].id", 1) == (
        ["view-bill"],
        3,
    )
    assert search(membership, "demo", "$[-1,0].title", 5)[0] == ["zoo", "Zoo"]
    assert search(membership, "demo", "$[1:3].title", 5)[0] == ["billing", "weather"]
    assert search(membership, "nobody", "$[*]", 5) == ([], 0)


def test_the_root_inside_a_filter_is_the_root_of_all() -> None:
    membership = registered(weather, billing)
    path = "$[?@['lmos:capabilities'][?@.version == $[1]['lmos:capabilities'][0].version]].title"

    assert search(membership, "demo", path, 5) == (["weather"], 1)


@pytest.mark.parametrize("query", ["$", "title", "$[", "$[?@.a = 1]"])
def test_a_search_for_all_or_nothing_is_refused(query: str) -> None:
    with pytest.raises(InvalidMessage, match="/query"):
        search(registered(billing), "demo", query, 5)


@pytest.mark.parametrize(
    "query",
    [
        "$..[" + ",".join("*" * 1000) + "]",
        "$[?" + "&&".join(["$..*"] * 300) + "]",
        "$" + "..*" * 40,
        "$[" + ",".join("0" * 1500) + "]" + "..*" * 6,
    ],
)
def test_a_query_that_would_take_too_long_is_given_up(query: str) -> None:
    membership = registered(*({**billing, "name": f"a{number}"} for number in range(50)))
    things = list(membership)

    with pytest.raises(InvalidMessage, match="steps"):
        jsonpaths.search(things, query, 5, steps=20_000)


def test_a_regular_expression_takes_no_longer_than_its_text_is_long() -> None:
    membership = registered({"name": "a", "description": "x" * 8000})

    began = time.thread_time()
    found = search(membership, "demo", "$[?search(@.description, '(x+x+)+y')]", 5)

    assert found == ([], 0)
    assert time.thread_time() - began < 2


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("a.c", "abc", True),
        ("a.c", "a\nc", False),
        ("a[.]c", "abc", False),
        ("a\\.c", "a.c", True),
        ("a\\.c", "abc", False),
        ("\\p{Lu}+", "ÄÖ", True),
        ("[a-c]{2,3}", "abcd", False),
        ("a|b", "b", True),
        ("ab", "xabx", False),
    ],
)
def test_regular_expressions_are_those_of_the_standard(
    pattern: str, text: str, *, fits: bool
) -> None:
    membership = registered({"name": "a", "description": text})
    quoted = json.dumps(pattern)

    found = search(membership, "demo", f"$[?match(@.description, {quoted})]", 5)

    assert found[1] == int(fits)
