"""Whoever applies a rollout is told what it means for conversations, where that may surprise."""

from typing import Any

import pytest

from lmos_mesh.resource_index import ResourceIndex, key_of, value_of
from lmos_mesh.resources import Channel, ChannelRollout
from lmos_mesh_operator.resource_rules import notes_on


def channel(subset: str) -> Channel:
    labels = {"tenant": "acme", "channel": "web", "subset": subset}
    metadata = {"name": f"web-{subset}", "labels": labels}
    return Channel.model_validate({"metadata": metadata, "spec": {"requiredCapabilities": []}})


def rollout(name: str, stable: str, canary: str, **status: Any) -> ChannelRollout:
    named = {
        "canaryChannel": {"name": f"web-{canary}"},
        "stableChannel": {"name": f"web-{stable}"},
        "steps": [{"weight": 10}],
    }
    told = {"tenant": "acme", "channel": "web", "canarySubset": canary, "stableSubset": stable}
    return ChannelRollout.model_validate(
        {
            "metadata": {"name": name, "labels": {"tenant": "acme"}},
            "spec": {"strategy": {"canary": named}},
            "status": {**told, **status} if status else None,
        }
    )


@pytest.mark.parametrize(
    ("phase", "stable", "canary", "told"),
    [
        ("Promoted", "a", "b", True),
        ("Promoted", "a", "c", True),
        ("Promoted", "b", "c", False),
        ("Progressing", "a", "b", False),
        ("Aborted", "a", "b", False),
    ],
)
def test_who_begins_anew_where_everybody_was_moved_is_told_so(
    phase: str, stable: str, canary: str, told: bool
) -> None:
    index = ResourceIndex()
    first = rollout("first", "a", "b", phase=phase, canaryWeight=100)
    for number, one in enumerate([channel("a"), channel("b"), channel("c"), first], start=1):
        index.apply(key_of(one).token, value_of(one), number)

    notes = notes_on(index, rollout("second", stable, canary), None)

    said = (
        "rollout 'default/first' has moved everybody to 'b'; this one begins anew, and sends "
        "90 % of new conversations to 'a'"
    )
    assert notes == ([said] if told else [])
    assert notes_on(index, first, first) == []
