import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from lmos_mesh.description import describe, description_faults, id_of, thing_of
from lmos_mesh.thing_faults import faults_of
from lmos_mesh.things import Thing

DATA = Path(__file__).parents[1] / "data" / "descriptions"
VALID = sorted((DATA / "valid").iterdir())
INVALID: list[dict[str, Any]] = yaml.safe_load((DATA / "invalid.yaml").read_text("utf-8"))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396), so that each case says only what is wrong."""
    if not isinstance(patch, dict):
        return patch
    kept = dict(cast("dict[str, Any]", target)) if isinstance(target, dict) else {}
    for name, value in cast("dict[str, Any]", patch).items():
        if value is None:
            kept.pop(name, None)
        else:
            kept[name] = merged(kept.get(name), value)
    return kept


def test_the_corpus_is_large_enough_to_mean_something() -> None:
    assert len(INVALID) >= 60
    assert len(VALID) >= 15
    assert len({case["case"] for case in INVALID}) == len(INVALID)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_description_of_another_vendor_is_taken_and_loses_nothing(path: Path) -> None:
    description = read(path)
    untouched = copy.deepcopy(description)

    assert description_faults(description) == []
    thing = thing_of(description, tenant="acme")

    assert description == untouched
    # As JSON, for which 1 and true are not the same.
    assert as_json(describe(thing)) == as_json(description)
    assert faults_of(thing) == []
    assert id_of(thing) == description["id"]
    assert thing_of(describe(thing), tenant="acme", trusted=True) == thing
    assert Thing.model_validate_json(thing.model_dump_json()) == thing


def as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case["case"])
def test_an_invalid_description_is_refused_with_the_right_pointers(case: dict[str, Any]) -> None:
    if "whole" in case:
        description = case["whole"]
    else:
        description = merged(read(DATA / "valid" / case["of"]), case["with"])

    faults = description_faults(description)

    assert sorted(fault["field"] for fault in faults) == sorted(case["faults"])
    assert all(fault["description"] for fault in faults)
    assert len({fault["field"] for fault in faults}) == len(faults)
