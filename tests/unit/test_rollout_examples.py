"""The examples of rollouts are what they say."""

from pathlib import Path

import pytest
import yaml

from lmos_mesh.resources import KINDS, Channel, ChannelRollout, Resource
from lmos_mesh_operator.plans import plan_of

FOLDER = Path(__file__).parents[2] / "examples" / "rollout"


def read(name: str) -> list[Resource]:
    documents = yaml.safe_load_all((FOLDER / name).read_text())
    return [KINDS[one["kind"]].model_validate(one) for one in documents]


def test_the_channels_of_the_canary_are_a_pair() -> None:
    stable, canary, _ = read("canary.yaml")

    assert isinstance(stable, Channel)
    assert isinstance(canary, Channel)
    assert stable.channel == canary.channel
    assert stable.subset != canary.subset


@pytest.mark.parametrize("name", ["canary.yaml", "shadow.yaml", "blue-green.yaml"])
def test_every_example_names_those_channels(name: str) -> None:
    *_, rollout = read(name)

    assert isinstance(rollout, ChannelRollout)
    plan = plan_of(rollout.spec.strategy)
    assert (plan.stable.name, plan.canary.name) == ("web-stable", "web-canary")
