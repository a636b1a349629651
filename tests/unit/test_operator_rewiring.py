"""What is different about two Routings, and which agents of one are gone, in words."""

from typing import Any

from lmos_mesh.resources import ChannelRouting
from lmos_mesh_operator.reconcile import MADE_FROM, RESTORED_FROM
from lmos_mesh_operator.resolving import Candidate, Offer
from lmos_mesh_operator.rewiring import gone_from, why_rewired


def routing(wires: dict[str, dict[str, str]], **annotations: str) -> ChannelRouting:
    groups = [
        {
            "name": agent,
            "subset": "stable",
            "capabilities": [
                {"name": name, "requiredVersion": "*", "providedVersion": version, "host": "h"}
                for name, version in offered.items()
            ],
        }
        for agent, offered in wires.items()
    ]
    return ChannelRouting.model_validate(
        {
            "metadata": {"name": "web", "annotations": annotations},
            "spec": {"capabilityGroups": groups},
        }
    )


def candidate(name: str, version: str = "1.0.0", **more: Any) -> Candidate:
    offers = (Offer(id="bill", name="bill", said=version),)
    told: dict[str, Any] = {"subset": "stable", "host": "h", "offers": offers, **more}
    return Candidate(name=name, **told)


FROM_1 = {MADE_FROM: "1"}


def test_why_a_routing_is_another_is_said_with_what_it_changed() -> None:
    one = routing({"a": {"bill": "1.0.0", "pay": "1.0.0"}}, **FROM_1)
    newer = routing({"a": {"pay": "1.0.0"}, "b": {"bill": "2.0.0"}}, **FROM_1)
    fewer = routing({"a": {"bill": "1.0.0"}}, **{MADE_FROM: "2"})
    back = routing({"a": {"bill": "1.0.0", "pay": "1.0.0"}}, **FROM_1, **{RESTORED_FROM: "3"})

    assert why_rewired(None, one) == "the Channel was resolved: bill by a 1.0.0; pay by a 1.0.0"
    assert why_rewired(one, newer) == "its agents changed: bill by b 2.0.0, not a 1.0.0"
    assert why_rewired(one, fewer) == "the Channel was changed: pay no longer"
    assert why_rewired(back, newer) == "it was released: bill by b 2.0.0, not a 1.0.0"
    settings = one.model_copy(update={"metadata": fewer.metadata})
    assert why_rewired(one, settings) == "the Channel was changed: nobody else answers"
    many = routing({"a": {f"c{number}": "1.0.0" for number in range(20)}})
    assert why_rewired(None, many).endswith("c5 by a 1.0.0; and 14 more")


def test_agents_that_cannot_do_their_part_any_more_are_named() -> None:
    wired = routing({"a": {"bill": "1.0.0"}})

    assert gone_from(wired, [candidate("a")]) == ()
    assert gone_from(wired, [candidate("a", live=False, declared=True)]) == ()
    (gone,) = gone_from(wired, [candidate("b"), candidate("a", subset="canary")])
    assert gone == "agent 'a' (stable) is gone: no turn can go there"
    (asleep,) = gone_from(wired, [candidate("a", live=False)])
    assert "has no live instance" in asleep
    (newer,) = gone_from(wired, [candidate("a", "2.0.0")])
    assert "provides 'bill' in version 2.0.0 now, not 1.0.0" in newer
    (unable,) = gone_from(wired, [candidate("a", offers=())])
    assert unable == "agent 'a' does not provide 'bill' any more"
