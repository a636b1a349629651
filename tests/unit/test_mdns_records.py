"""What the mDNS adapter says and reads, and what it makes of it."""

import ipaddress
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.description import describe, description_faults, thing_of
from lmos_mesh.errors import AgentFailed, InvalidMessage, NotFound, Overloaded, Unavailable
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import ThingKey
from lmos_mesh_mdns.forms import Form, answer_from, forms_of
from lmos_mesh_mdns.found import (
    UnusableAnswer,
    description_from,
    found_by_us,
    page_from,
    prepared,
    same_origin,
    second_hand,
    things_url,
)
from lmos_mesh_mdns.networks import (
    Interface,
    Place,
    Unreachable,
    chosen,
    interface,
    multicast_addresses,
    near,
    networks_from,
    place_of,
)
from lmos_mesh_mdns.records import (
    Target,
    UnusableRecord,
    announced,
    directory_announcement,
    target_of,
    thing_announcement,
)
from lmos_mesh_mdns.sightings import FAILURES, Listed, Sightings

LAN = interface("eth0", "192.168.1.7", 24)
LOOPBACK = interface("lo", "127.0.0.1", 8)
PLACE = Place(scheme="http", addresses=("192.168.1.7",), port=8420)
TARGET = Target(
    kind="Thing",
    scheme="http",
    address="192.168.1.9",
    port=8080,
    host="lamp.local",
    path="/td",
)
DIRECTORY_TARGET = Target(
    kind="Directory",
    scheme="http",
    address="192.168.1.9",
    port=8080,
    host="shelf.local",
    path="/.well-known/wot",
)


def read(
    text: bytes | None = None,
    *,
    addresses: tuple[str, ...] = ("192.168.1.9",),
    port: int = 8080,
    server: str = "lamp.local.",
    **properties: str,
) -> Target:
    told: dict[bytes, bytes | None] = {
        name.encode(): value.encode() for name, value in properties.items()
    }
    return target_of(
        server=server,
        port=port,
        addresses=addresses,
        text=b"x" * 20 if text is None else text,
        properties=told,
        interfaces=[LAN],
    )


def td(**more: Any) -> dict[str, Any]:
    return {
        "@context": "https://www.w3.org/2022/wot/td/v1.1",
        "id": "urn:dev:lamp",
        "title": "A lamp",
        "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
        "security": "nosec_sc",
        **more,
    }


# -- networks --


def test_without_a_choice_all_interfaces_but_loopback_are_used() -> None:
    assert chosen([LOOPBACK, LAN], []) == (LAN,)
    assert chosen([LOOPBACK, LAN], ["lo"]) == (LOOPBACK,)
    assert chosen([LOOPBACK, LAN], ["192.168.1.7"]) == (LAN,)
    assert chosen([LOOPBACK, LAN], ["eth9"]) == ()


def test_dns_sd_is_spoken_from_ipv4_addresses() -> None:
    assert multicast_addresses([LAN, interface("eth0", "fd00::7", 64)]) == ["192.168.1.7"]


def test_what_listens_everywhere_is_announced_at_all_addresses_of_the_interfaces() -> None:
    six = interface("eth0", "fd00::7", 64)
    scoped = interface("eth0", "fe80::7%3", 64)

    place = place_of("http://0.0.0.0:8420", [LAN, six, scoped])
    both = place_of("http://[::]:8420", [LAN, six, scoped])

    assert place == Place(scheme="http", addresses=("192.168.1.7",), port=8420)
    assert both.addresses == ("192.168.1.7", "fd00::7")


def test_what_listens_on_loopback_is_announced_there_and_nowhere_else() -> None:
    with pytest.raises(Unreachable, match=r"LMOS_HTTP_HOST=0\.0\.0\.0"):
        place_of("http://127.0.0.1:8420", [LAN])

    assert place_of("http://127.0.0.1:8420", [LOOPBACK]).addresses == ("127.0.0.1",)


def test_another_machine_that_listens_everywhere_has_no_known_address() -> None:
    with pytest.raises(Unreachable, match="another machine"):
        place_of("http://0.0.0.0:8420", [LAN], here=False)


def test_a_url_with_a_path_keeps_it_as_a_prefix() -> None:
    place = place_of("https://mesh.example/lmos/", [LAN], resolved=["192.168.1.8"])

    assert place == Place(scheme="https", addresses=("192.168.1.8",), port=443, prefix="/lmos")
    text = dict(directory_announcement(place, "demo", "mdns-1").text)
    assert text == {
        "td": "/lmos/.well-known/wot",
        "type": "Directory",
        "scheme": "https",
        "mesh": "mdns-1",
    }


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "8.8.8.8", "224.0.0.251", "0.0.0.0", "169.254.169.254", "fe80::1%2", "x"],
)
def test_addresses_that_are_not_on_the_network_are_left_alone(address: str) -> None:
    assert near([address], [LAN]) == ()


def test_more_networks_are_a_setting() -> None:
    assert near(["10.2.3.4"], [LAN], networks_from(" 10.2.0.0/16, ")) == ("10.2.3.4",)
    with pytest.raises(ValueError, match="nowhere"):
        networks_from("nowhere")


@given(st.lists(st.ip_addresses().map(str)))
def test_near_addresses_are_those_of_the_networks_in_use(addresses: list[str]) -> None:
    found = near(addresses, [LAN])

    assert set(found) <= set(addresses)
    assert all(ipaddress.ip_address(one) in LAN.network for one in found)


# -- what is announced --


def test_the_directory_has_the_txt_record_of_the_w3c() -> None:
    one = directory_announcement(PLACE, "demo", "mdns-1")

    assert one.text == (("td", "/.well-known/wot"), ("type", "Directory"), ("mesh", "mdns-1"))
    assert one.directory


def test_an_agent_has_the_path_of_its_description() -> None:
    one = thing_announcement(PLACE, ThingKey("demo", "billing & more", "canary"), "mdns-1")

    assert one is not None
    assert dict(one.text)["td"] == "/agents/billing%20%26%20more/canary/.well-known/wot"
    assert one.label == "billing & more (canary)"
    assert not one.directory


def test_a_name_that_no_txt_record_holds_is_left_to_the_directory() -> None:
    keys = [ThingKey("demo", "é" * 64, "stable"), ThingKey("demo", "a", "stable")]

    wanted, left_out = announced(PLACE, "demo", keys, "mdns-1", limit=10)

    assert set(wanted) == {None, keys[1]}
    assert left_out == [keys[0]]


def test_no_more_than_the_limit_is_announced() -> None:
    keys = [ThingKey("demo", f"agent-{one}", "stable") for one in range(5)]

    wanted, left_out = announced(PLACE, "demo", reversed(keys), "mdns-1", limit=2)

    assert set(wanted) == {None, *keys[:2]}
    assert left_out == keys[2:]


@given(st.text(min_size=1, max_size=128), st.text(min_size=1, max_size=20))
def test_labels_fit_into_dns_with_a_number_behind_them(name: str, subset: str) -> None:
    try:
        (name + subset).encode()
    except UnicodeEncodeError:
        return
    one = thing_announcement(PLACE, ThingKey("demo", name, subset), "mdns-1")
    if one is None:
        return

    for label in (one.label, one.other_label):
        assert len(f"{label}-9999".encode()) <= 63
        assert "." not in label
    assert all(len(f"{key}={value}".encode()) <= 255 for key, value in one.text)


# -- what is read --


def test_records_that_say_little_are_read_as_the_w3c_says() -> None:
    assert read(td="/td") == TARGET
    assert read().path == "/.well-known/wot"
    assert read(type="Directory", scheme="https").kind == "Directory"
    assert read(mesh="mdns-1").announcer == "mdns-1"
    assert TARGET.url == "http://192.168.1.9:8080/td"


@pytest.mark.parametrize(
    "path",
    [
        "http://evil.example/td",
        "//evil.example/td",
        "td",
        "/a b",
        "/a\r\nHost: evil",
        "/a\\b",
        "/a#b",
        "/a\u2028b",
    ],
)
def test_a_td_that_is_no_absolute_path_is_refused(path: str) -> None:
    with pytest.raises(UnusableRecord, match="td"):
        read(td=path)


def test_other_records_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(UnusableRecord, match="type"):
        read(type="Spaceship")
    with pytest.raises(UnusableRecord, match="scheme"):
        read(scheme="coap")
    with pytest.raises(UnusableRecord, match="port"):
        read(port=0)
    with pytest.raises(UnusableRecord, match="1301 bytes"):
        read(b"x" * 1301)
    with pytest.raises(UnusableRecord, match="LMOS_MDNS_NETWORKS"):
        read(addresses=("8.8.8.8",))


def test_a_host_name_that_is_none_is_not_sent_to_anybody() -> None:
    assert read(server="evil\r\nX: y.local.").host == "192.168.1.9"


@given(
    st.dictionaries(st.binary(max_size=20), st.none() | st.binary(max_size=255), max_size=8),
    st.text(max_size=80),
    st.lists(st.text(max_size=30) | st.ip_addresses().map(str), max_size=4),
    st.integers(-1, 70_000),
)
def test_whatever_is_announced_is_read_or_refused(
    properties: dict[bytes, bytes | None], server: str, addresses: list[str], port: int
) -> None:
    try:
        target = target_of(
            server=server,
            port=port,
            addresses=addresses,
            text=b"",
            properties=properties,
            interfaces=[LAN],
        )
    except UnusableRecord:
        return

    assert ipaddress.ip_address(target.address) in LAN.network
    assert target.path.startswith("/")
    assert target.path.isascii()
    assert not set(target.path + target.host) & set(string.whitespace)


# -- what was found --


def test_a_found_description_is_marked_and_stays_valid() -> None:
    made = prepared(td(actions={"on": {"forms": [{"href": "/on"}]}}), TARGET, "Lamp", "demo")

    assert made["mesh:external"] is True
    assert made["base"] == TARGET.url
    assert found_by_us(made)
    assert not description_faults(made)
    assert thing_of(made).external


def test_a_description_without_an_id_gets_the_same_one_each_time() -> None:
    anonymous = td()
    del anonymous["id"]

    first, second = (
        prepared(anonymous, TARGET, "Lamp", "demo"),
        prepared(anonymous, TARGET, "Lamp", "demo"),
    )

    assert first["id"] == second["id"]
    assert first["id"].startswith("urn:uuid:")
    assert prepared(anonymous, TARGET, "Other", "demo")["id"] != first["id"]


def test_a_found_description_cannot_say_that_it_is_ours() -> None:
    made = prepared(
        td(**{"mesh:external": False, "mesh:foundBy": "", "mesh:origin": "x", "registration": {}}),
        TARGET,
        "Lamp",
        "demo",
    )

    assert made["mesh:external"] is True
    assert found_by_us(made)
    assert "mesh:origin" not in made
    assert "registration" not in made


def test_an_agent_of_another_mesh_keeps_only_forms_that_can_be_used_here() -> None:
    theirs = describe(
        thing_from({"name": "billing", "description": "Bills.", "capabilities": [{"id": "pay"}]})
    )
    theirs["actions"]["pay"]["forms"].append({"href": "http://192.168.1.9:8080/agents/billing"})

    made = prepared(theirs, TARGET, "billing", "demo")

    assert [one["href"] for one in made["actions"]["pay"]["forms"]] == [
        "http://192.168.1.9:8080/agents/billing"
    ]
    assert len(theirs["actions"]["pay"]["forms"]) == 2
    assert not description_faults(made)


def test_an_agent_of_another_mesh_becomes_our_tenants() -> None:
    theirs = describe(
        thing_from({"name": "billing", "tenant": "north", "capabilities": [{"id": "pay"}]})
    )

    made = prepared(theirs, TARGET, "billing", "demo b")

    assert made["id"] == "urn:lmos-mesh:demo%20b:billing:stable"
    assert made["mesh:tenant"] == "demo b"
    assert made["mesh:foundAs"] == theirs["id"]
    assert thing_of(made).tenant == "demo b"
    assert not description_faults(made)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["@context", "id", "actions", "properties", "forms", "base", "title"]),
        _json,
    )
)
def test_whatever_a_description_says_it_can_be_marked(description: dict[str, Any]) -> None:
    before = json.dumps(description)

    assert found_by_us(prepared(description, TARGET, "Lamp", "demo"))
    assert isinstance(things_url(description, TARGET.url), str)
    assert json.dumps(description) == before


@given(st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_answered_is_read_or_refused(body: bytes) -> None:
    for reader in (description_from, page_from):
        try:
            reader(body)
        except UnusableAnswer:
            continue


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(UnusableAnswer, match="NaN"):
        description_from(b'{"a": NaN}')


def test_pages_are_arrays_or_collections() -> None:
    assert page_from(b'[{"id": "a"}, 1]') == ([{"id": "a"}], "")
    assert page_from(b'{"members": [{"id": "a"}], "next": "/p2"}') == ([{"id": "a"}], "/p2")


def test_the_list_of_a_directory_is_where_its_description_says() -> None:
    directory = td(properties={"things": {"forms": [{"href": "/all{?offset,limit}"}]}})

    assert things_url(directory, DIRECTORY_TARGET.url) == "http://192.168.1.9:8080/all"
    assert things_url(td(), DIRECTORY_TARGET.url) == "http://192.168.1.9:8080/things"
    elsewhere = td(base="http://evil.example")
    assert not same_origin(things_url(elsewhere, DIRECTORY_TARGET.url), DIRECTORY_TARGET)


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("http://192.168.1.9:8080/x", True),
        ("http://lamp.local:8080/x", True),
        ("https://192.168.1.9:8080/x", False),
        ("http://192.168.1.9/x", False),
        ("http://192.168.1.9:8080@evil.example/x", False),
        ("http://u@192.168.1.9:8080/x", False),
        ("http://192.168.1.9:nope/x", False),
        ("http://[bad/x", False),
    ],
)
def test_only_the_host_and_port_of_the_records_are_asked(url: str, same: bool) -> None:
    assert same_origin(url, TARGET) is same


def test_what_a_directory_heard_from_others_is_not_passed_on() -> None:
    assert second_hand({"mesh:external": True}, "Directory")
    assert second_hand({"mesh:origin": "north"}, "Directory")
    assert not second_hand({"mesh:external": True}, "Thing")
    assert not second_hand({}, "Directory")


# -- what was seen --


def sightings(*, sources_max: int = 10, things_max: int = 10) -> Sightings:
    return Sightings(sources_max=sources_max, things_max=things_max, refresh_s=60.0)


def listed(thing_id: str, revision: int = 1) -> Listed:
    return Listed(id=thing_id, name=thing_id, subset="stable", revision=revision)


def visited(seen: Sightings, source: str, *ids: str, kind: Any = "Thing", now: float = 0) -> None:
    seen.see(source, "wot", now)
    while seen.next(now) not in (source, None):
        pass
    for one in ids:
        if seen.claim(source, kind, one):
            seen.hold(listed(one))
    seen.succeed(source, set(ids), now)


def test_what_is_seen_is_visited_once_and_then_at_each_refresh() -> None:
    seen = sightings()
    seen.see("a", "wot", 0)

    assert seen.next(0) == "a"
    assert seen.next(0) is None
    seen.succeed("a", set(), 1)
    assert seen.wait_s(1) == 60
    assert seen.next(60) is None
    assert seen.next(61) == "a"


def test_a_change_while_it_is_visited_is_visited_soon() -> None:
    seen = sightings()
    seen.see("a", "wot", 0)
    seen.next(0)
    seen.see("a", "wot", 0.5)

    assert seen.next(0.5) is None
    seen.succeed("a", set(), 1)

    assert seen.wait_s(1) == 1


def test_what_a_source_gave_goes_with_it() -> None:
    seen = sightings()
    visited(seen, "a", "x", "y")

    assert seen.lose("a", "wot") == [listed("x"), listed("y")]
    assert "a" not in seen
    assert not seen.listed


def test_a_source_that_is_announced_twice_is_there_until_both_have_gone() -> None:
    seen = sightings()
    visited(seen, "a", "x")
    seen.see("a", "directory", 0)

    assert seen.lose("a", "directory") == []
    assert seen.lose("a", "wot") == [listed("x")]


def test_what_a_source_no_longer_gives_goes() -> None:
    seen = sightings()
    visited(seen, "a", "x", "y")
    seen.next(60)

    assert seen.succeed("a", {"x"}, 60) == [listed("y")]


def test_what_a_source_gave_goes_after_it_failed_several_times() -> None:
    seen = sightings()
    visited(seen, "a", "x")
    gone: list[Listed] = []
    for attempt in range(FAILURES):
        assert not gone
        seen.next(1000.0 * attempt)
        gone = seen.fail("a", 1000.0 * attempt)

    assert gone == [listed("x")]


def test_what_a_thing_says_of_itself_goes_before_what_a_directory_says() -> None:
    seen = sightings()
    visited(seen, "shelf", "x", kind="Directory")
    visited(seen, "lamp", "x", kind="Thing")

    assert not seen.claim("shelf", "Directory", "x")
    assert seen.claim("lamp", "Thing", "x")


def test_what_another_source_gives_too_stays_and_is_read_there() -> None:
    seen = sightings()
    visited(seen, "lamp", "x")
    visited(seen, "shelf", "x", kind="Directory")

    assert seen.lose("lamp", "wot") == []
    assert seen.next(0) == "shelf"
    assert seen.claim("shelf", "Directory", "x")


def test_a_registration_that_outlives_its_source_is_not_held() -> None:
    seen = sightings()
    seen.see("a", "wot", 0)
    seen.next(0)
    assert seen.claim("a", "Thing", "x")
    seen.lose("a", "wot")

    assert not seen.hold(listed("x"))


def test_sources_and_things_are_bounded() -> None:
    seen = sightings(sources_max=2, things_max=1)

    assert seen.see("a", "wot", 0)
    assert seen.see("b", "wot", 0)
    assert not seen.see("c", "wot", 0)
    assert seen.see("a", "wot", 0)
    assert seen.claim("a", "Thing", "x")
    assert not seen.claim("a", "Thing", "y")
    assert seen.full


def test_who_waits_for_room_has_the_place_of_who_leaves_or_fails() -> None:
    seen = sightings(sources_max=1)
    seen.see("a", "wot", 0)
    for one in ("b", "c", "d"):
        assert not seen.see(one, "wot", 0)
    seen.lose("d", "wot")

    for _ in range(FAILURES):
        seen.next(1e6)
        seen.fail("a", 0)
    assert "c" in seen
    seen.lose("c", "wot")
    assert "b" in seen
    seen.lose("b", "wot")
    assert "a" in seen
    assert len(seen) == 1


def test_a_flood_keeps_no_more_waiting_than_there_is_room_for() -> None:
    seen = sightings(sources_max=2)
    for one in range(100_000):
        seen.see(str(one), "wot", 0)

    for one in range(100_000):
        seen.lose(str(one), "wot")
    assert not seen.listed
    assert len(seen) == 0


def test_the_same_is_said_of_a_source_once() -> None:
    seen = sightings()
    seen.see("a", "wot", 0)

    assert seen.news("a", "wrong")
    assert not seen.news("a", "wrong")
    assert seen.news("a", "worse")
    assert not seen.news("a", "")
    assert seen.news("a", "worse")


_events = st.lists(
    st.tuples(
        st.sampled_from(["see", "lose", "visit", "fail"]),
        st.sampled_from("abc"),
        st.frozensets(st.sampled_from("xyz")),
        st.sampled_from(["Thing", "Directory"]),
    ),
    max_size=40,
)


@given(_events)
def test_what_is_listed_is_what_the_sources_that_are_there_give(events: list[Any]) -> None:
    seen, registry = sightings(things_max=100), set[str]()
    for now, (event, source, ids, kind) in enumerate(events):
        gone: list[Listed] = []
        if event == "see":
            seen.see(source, "wot", now)
        elif event == "lose":
            gone = seen.lose(source, "wot")
        elif event == "fail":
            gone = seen.fail(source, now)
        elif source in seen:
            for one in ids:
                if seen.claim(source, kind, one):
                    registry.add(one)
                    assert seen.hold(listed(one))
            gone = seen.succeed(source, set(ids), now)
        registry -= {one.id for one in gone}

        assert registry == {one.id for one in seen.listed}
    for source in "abc":
        registry -= {one.id for one in seen.lose(source, "wot")}
    assert not registry


def test_an_interface_is_an_address_and_its_network() -> None:
    assert interface("eth0", "fe80::1%2", 64) == Interface(
        name="eth0",
        address=ipaddress.ip_address("fe80::1"),
        network=ipaddress.ip_network("fe80::/64"),
    )


def test_what_answers_at_addresses_of_this_machine_is_announced_at_all_of_them() -> None:
    told = place_of("http://myself:8420", [LAN], resolved=["127.0.1.1"], answering=["192.168.1.7"])

    assert told.addresses == ("192.168.1.7",)
    with pytest.raises(Unreachable):
        # Something else of this machine may listen at that port of another address.
        place_of("http://localhost:8420", [LAN], resolved=["127.0.0.1"], answering=["192.168.1.7"])


# -- calling what was found --


def found_agent(**form: Any) -> dict[str, Any]:
    description = describe(
        thing_from({"name": "billing", "description": "Bills.", "capabilities": [{"id": "pay"}]})
    )
    description["actions"]["pay"]["forms"] = [{"href": "/pay", "op": "invokeaction", **form}]
    return prepared(description, TARGET, "billing", "demo")


def test_an_agent_is_called_by_its_first_form_that_can_be_used() -> None:
    description = found_agent()

    assert forms_of(thing_of(description), description, TARGET) == {
        "pay": Form(url="http://192.168.1.9:8080/pay", method="POST")
    }


@pytest.mark.parametrize(
    "form",
    [
        {"href": "http://192.168.1.1/admin"},
        {"href": "http://192.168.1.9:22/pay"},
        {"href": "coap://192.168.1.9:8080/pay"},
        {"href": "/pay{?id}"},
        {"op": "readproperty"},
        {"htv:methodName": "DELETE"},
        {"contentType": "application/xml"},
        {"subprotocol": "sse"},
        {"security": "nosec_sc"},
    ],
)
def test_forms_that_lead_elsewhere_or_need_more_than_json_are_not_used(
    form: dict[str, Any],
) -> None:
    description = found_agent(**form)

    assert forms_of(thing_of(description), description, TARGET) is None


def test_what_needs_a_credential_or_is_no_agent_is_not_called() -> None:
    guarded = found_agent() | {
        "securityDefinitions": {"basic_sc": {"scheme": "basic"}},
        "security": "basic_sc",
    }
    plain = prepared(td(actions={"on": {"forms": [{"href": "/on"}]}}), TARGET, "Lamp", "demo")

    assert forms_of(thing_of(guarded), guarded, TARGET) is None
    assert forms_of(thing_of(plain), plain, TARGET) is None


def test_what_an_agent_answers_is_its_output_or_an_error_of_ours() -> None:
    assert answer_from(200, "application/json", b'{"a": 1}') == {"a": 1}
    assert answer_from(200, "text/plain; charset=utf-8", b"Hello") == "Hello"
    assert answer_from(204, "", b"") is None
    for status, kind in {
        404: NotFound,
        422: InvalidMessage,
        429: Overloaded,
        500: AgentFailed,
        503: Unavailable,
    }.items():
        with pytest.raises(kind, match=str(status)):
            answer_from(status, "", b"\xff")
    with pytest.raises(AgentFailed, match="not JSON"):
        answer_from(200, "text/html", b"<html>")
