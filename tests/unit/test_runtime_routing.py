"""Which way a turn goes: named, drawn, or the usual one; and whom it may be asked of."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.messages import Converse, Utterance
from lmos_mesh.resource_index import ResourceIndex, key_of, value_of
from lmos_mesh.resources import (
    Channel,
    ChannelRollout,
    ChannelRouting,
    ChannelStatus,
    Resource,
)
from lmos_mesh.things import Capability, Thing, ThingKey
from lmos_mesh.weights import Side
from lmos_mesh.wiring import host_of
from lmos_mesh_runtime.routing import Way, Ways, drawn_by

BILLING = ThingKey("acme", "billing", "stable")


def labelled(name: str, subset: str) -> dict[str, Any]:
    return {
        "name": name,
        "labels": {"tenant": "acme", "channel": "web", "subset": subset},
    }


def channel(subset: str) -> Channel:
    metadata = labelled(f"acme-web-{subset}", subset)
    return Channel.model_validate({"metadata": metadata, "spec": {"requiredCapabilities": []}})


def routing(subset: str = "stable", **spec: Any) -> ChannelRouting:
    key = BILLING._replace(subset=subset)
    wired = {
        "name": "view",
        "requiredVersion": "*",
        "providedVersion": "1.0.0",
        "host": host_of(key),
    }
    groups = [{"name": "billing", "subset": subset, "capabilities": [wired]}]
    return ChannelRouting.model_validate(
        {
            "metadata": labelled(f"acme-web-{subset}", subset),
            "spec": {"capabilityGroups": groups, **spec},
        }
    )


def rollout(phase: str = "Progressing", weight: int = 50, **status: Any) -> ChannelRollout:
    named = {"canaryChannel": {"name": "b"}, "stableChannel": {"name": "a"}}
    return ChannelRollout.model_validate(
        {
            "metadata": {"name": "web"},
            "spec": {"strategy": {"canary": named}},
            "status": {
                "phase": phase,
                "canaryWeight": weight,
                "tenant": "acme",
                "channel": "web",
                "stableSubset": "stable",
                "canarySubset": "canary",
                "salt": "s1",
                **status,
            },
        }
    )


def ways(*resources: Resource) -> Ways:
    index = ResourceIndex()
    for revision, one in enumerate(resources, start=1):
        index.apply(key_of(one).token, value_of(one), revision)
    return Ways(index)


def converse(**more: Any) -> Converse:
    return Converse(message="show my bill", **more)


def subset_of(known: Ways, request: Converse, conversation: str, kept: Side | None = None) -> str:
    side = known.side(request, "acme", conversation, kept)
    return known.way(request, "acme", side).subset


def test_without_a_rollout_everybody_goes_to_stable() -> None:
    assert subset_of(ways(), converse(), "c1") == "stable"
    assert subset_of(ways(channel("stable"), channel("canary")), converse(), "c1") == "stable"


def test_who_names_a_subset_gets_it_and_the_conversation_stays_where_it_was() -> None:
    known = ways(channel("stable"), channel("canary"), rollout(weight=0))
    kept = Side(subset="stable", rollout="default/web", salt="s1")
    request = converse(subset="canary")

    side = known.side(request, "acme", "c1", kept)

    assert side == kept
    assert known.way(request, "acme", side).subset == "canary"
    assert known.way(request, "acme", side).rollout == ""


def test_a_channel_whose_lines_are_called_otherwise_has_a_usual_one_too() -> None:
    ended = rollout(phase="RolledBack", stableSubset="blue", canarySubset="green")

    assert ways(channel("blue")).usual("acme", "web") == "blue"
    assert ways(channel("blue"), channel("green"), ended).usual("acme", "web") == "blue"
    assert ways(channel("blue"), channel("green")).usual("acme", "web") == "stable"


def test_a_conversation_that_nobody_keeps_is_drawn_by_its_beginning() -> None:
    first = drawn_by(converse(), "c1", ())
    history = (
        Utterance(role="system", content="be brief"),
        Utterance(role="user", content="show my bill"),
        Utterance(role="assistant", content="39.99"),
    )
    later = drawn_by(Converse(message="and the one before?"), "c2", history)

    assert first == later
    assert drawn_by(converse(user="ann"), "c1", ()) != first
    assert drawn_by(converse(conversation="c1"), "c1", ()) == "c1"


def test_turns_of_stable_are_mirrored_and_others_are_not() -> None:
    known = ways(channel("stable"), channel("canary"), rollout(weight=0, shadowPercent=100))
    stable = Way(tenant="acme", channel="web", subset="stable")

    found = known.mirrored(stable, "c1.t1")

    assert found is not None
    assert (found.subset, found.rollout) == ("canary", "default/web")
    other = Way(tenant="acme", channel="web", subset="canary")
    assert known.mirrored(other, "c1.t1") is None
    assert ways().mirrored(stable, "c1.t1") is None


def test_only_what_is_wired_may_be_asked_for() -> None:
    known = ways(channel("stable"), routing(fallbackAgent="concierge"))
    way = Way(tenant="acme", channel="web", subset="stable")
    able = tuple(Capability(id=one) for one in ("view", "pay"))
    billing = Thing(name="billing", tenant="acme", capabilities=able)
    concierge = ThingKey("acme", "concierge", "stable")
    bare = Thing(name="concierge", tenant="acme")

    assert known.admitted(way, billing, BILLING, "view") == able[0]
    assert known.admitted(way, billing, BILLING, "pay") is None
    assert known.admitted(way, billing, BILLING, "gone") is None
    assert known.admitted(way, billing, ThingKey("acme", "weather", "stable"), "view") is None
    assert known.admitted(way, bare, concierge, "") == Capability(id="")
    silent = billing.model_copy(update={"supported_channels": ()})
    assert known.admitted(way, silent, BILLING, "view") is None
    assert "channel 'web'" in str(known.refused(way, "weather"))


def test_a_channel_is_awaited_until_somebody_has_tried_to_resolve_it() -> None:
    way = Way(tenant="acme", channel="web", subset="stable")
    tried = channel("stable").model_copy(update={"status": ChannelStatus()})

    assert ways(channel("stable")).is_awaited(way)
    assert not ways(tried).is_awaited(way)
    assert not ways(channel("stable"), routing()).is_awaited(way)
    assert not ways(channel("canary")).is_awaited(way)
    assert not ways().is_awaited(way)


def test_on_an_open_channel_an_agent_that_changed_is_asked_for_what_it_can_do() -> None:
    way = Way(tenant="acme", channel="web", subset="stable")
    billing = Thing(name="billing", tenant="acme", capabilities=(Capability(id="view"),))

    found = ways().admitted(way, billing, BILLING, "gone")

    assert found == billing.capabilities[0]
    assert "has just left" in str(ways().refused(way, "billing"))


steps = st.lists(
    st.tuples(
        st.sampled_from(["Progressing", "Paused", "Promoted", "RolledBack"]),
        st.integers(1, 100),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@given(st.text("abc123", min_size=1, max_size=6), steps)
def test_a_conversation_never_flips_while_its_rollout_runs(
    conversation: str, changes: list[tuple[str, int, bool]]
) -> None:
    kept: Side | None = None
    before: tuple[str, str] | None = None
    for phase, weight, named in changes:
        known = ways(channel("stable"), channel("canary"), rollout(phase, weight))
        request = converse(subset="canary") if named else converse()
        kept = known.side(request, "acme", conversation, kept)
        if named:
            continue
        subset = known.way(request, "acme", kept).subset
        if phase == "Promoted":
            assert subset == "canary"
        elif phase == "RolledBack":
            assert subset == "stable"
        elif before is not None and before[0] in ("Progressing", "Paused"):
            assert subset == before[1]
        before = (phase, subset)
