"""Files that people write by hand: what is taken, and what is said of the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmos_mesh.cli.documents import read_documents
from lmos_mesh.errors import InvalidMessage, MeshError, NotFound


def read(tmp_path: Path, text: str | bytes, name: str = "file.yaml") -> list[Any]:
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return [one.value for one in read_documents(str(file))]


def test_a_file_may_hold_several_documents(tmp_path: Path) -> None:
    assert read(tmp_path, "a: 1\n---\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]
    assert read(tmp_path, '[{"a": 1}, {"b": 2}]', "file.json") == [{"a": 1}, {"b": 2}]


def test_a_document_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("a: 1\n---\nb: 2\n")
    (tmp_path / "one.json").write_text('{"a": 1}')

    assert [one.where for one in read_documents(str(tmp_path / "two.yaml"))] == [
        f"{tmp_path}/two.yaml (document 1)",
        f"{tmp_path}/two.yaml (document 2)",
    ]
    assert read_documents(str(tmp_path / "one.json"))[0].where == f"{tmp_path}/one.json"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2026-11-22", "2026-11-22"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("true", True),
        ("null", None),
        ("12:30", "12:30"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("1.4.2", "1.4.2"),
        ("-3", -3),
        ("1e3", 1000.0),
        ("'5'", "5"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
    ],
)
def test_a_value_means_what_it_looks_like(tmp_path: Path, said: str, meant: Any) -> None:
    assert read(tmp_path, f"value: {said}\n") == [{"value": meant}]


def test_names_of_members_are_texts(tmp_path: Path) -> None:
    assert read(tmp_path, "on: 1\n2: b\n'@type': c\n") == [{"on": 1, "2": "b", "@type": "c"}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.dictionaries(st.text(max_size=5), json_values, max_size=3))
def test_what_is_json_reads_the_same_as_yaml(tmp_path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value)

    assert read(tmp_path, text, "file.json") == [value]
    assert read(tmp_path, text) == [value]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "", "is empty"),
        ("a.json", "[]", "is empty"),
        ("a.yaml", "a: [1", "can be read: line 1, column 6: expected"),
        ("a.yaml", "a: 1\nb: [where is it?]\n", r"line 2, column 1\d: expected"),
        ("a.json", '{"a": 1', "no JSON that can be read"),
        ("a.json", '{"a": NaN}', "NaN is no number"),
        ("a.yaml", "- 1\n", "must be an object, not an array"),
        ("a.json", "[1]", "must be an object, not a number"),
        ("a.yaml", "a: 1\na: 2\n", "'a' is there twice"),
        ("a.json", '{"a": 1, "a": 2}', "'a' is there twice"),
        ("a.yaml", '{"a": 1, "a": 2}', "'a' is there twice"),
        ("a.yaml", "a: &x [1]\nb: *x\n", r"\*x is a reference"),
        ("a.yaml", "? [1]\n: 2\n", "must be a text"),
        ("a.yaml", "a: !!python/object:os.system x\n", "no YAML that can be read"),
        ("a.yaml", b"a: \xff\n", "not UTF-8 at byte 3"),
        ("a.json", "[" * 100_000, "(nested too deeply|no JSON)"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(
    tmp_path: Path, name: str, text: str | bytes, said: str
) -> None:
    with pytest.raises(InvalidMessage, match=said):
        read(tmp_path, text, name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere.yaml: No such file"):
        read_documents(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(MeshError, match="directory"):
        read_documents(str(tmp_path))
