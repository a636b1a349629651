"""Files that people write by hand: what is taken, and what is said of the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmos_mesh.cli.documents import read_documents
from lmos_mesh.cli.yaml_reading import yaml_documents
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
        ("a.yaml", "a: [1", r"line \d, column \d: (expected|did not find)"),
        ("a.yaml", "a: 1\nb: [where, is: it: x]\n", r"line 2, column 1\d: "),
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
        ("a.json", "[" * 100_000, "(nested more than 64 deep|no JSON)"),
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


BOMB = "\n".join(
    [f"a0: &a0 [{', '.join(['x'] * 9)}]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, r"line 2, column \d+: \*a0 is a reference"),
        ("a: 1\n---\n" * 10_001, "more than 10000 documents"),
        ("a:\n" + "".join(f"{' ' * n}- \n" for n in range(1, 70)), "more than 64 deep"),
        ("[" * 100_000, "more than 64 deep"),
        ("{a: " * 100_000, "more than 64 deep"),
        ("spec:\n\tname: x\n", "line 2, column 1: there is a tab"),
        ("spec:\n  a: 1\n\tb: 2\n", "line 3, column 1: there is a tab"),
        ("a: 1\nb: \x00\x01\n", r"line 2: character U\+0000 is no text"),
        ("a: {b: 1, b: 2}\n", "line 1, column 11: 'b' is there twice"),
        ("? {a: 1}\n: 2\n", "must be a text"),
        ("a: !!int five\n", "is no type that JSON has"),
        ("a: !!set {b}\n", "is no type that JSON has"),
    ],
)
def test_what_is_too_much_or_no_text_is_refused_at_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, text: str, said: str
) -> None:
    if not fast:
        monkeypatch.setattr("yaml.__with_libyaml__", False)
    if not fast and "---" in text:
        pytest.skip("takes seconds")

    with pytest.raises(InvalidMessage, match=said):
        read(tmp_path, text)


def test_a_file_has_at_most_so_many_bytes_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidMessage, match="more than 8 MiB, which is the most that is read"):
        read(tmp_path, b"#" * (8 * 2**20 + 1))
    monkeypatch.setattr("lmos_mesh.cli.yaml_reading.MOST_VALUES", 100)
    with pytest.raises(InvalidMessage, match="more than 100 values; split the file"):
        read(tmp_path, "a: [" + "1, " * 100 + "]")


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfa: 1\r\nb:\r\n- x\r\n",
        b"a: 1\nb:\n- x\n",
        b'{"a": 1,\n\t"b": ["x"]}',
    ],
)
def test_marks_of_other_systems_change_nothing(tmp_path: Path, text: bytes) -> None:
    assert read(tmp_path, text) == [{"a": 1, "b": ["x"]}]


def test_ten_thousand_documents_are_read(tmp_path: Path) -> None:
    assert len(read(tmp_path, "---\na: 1\n" * 10_000)) == 10_000


BLOCKS = """
--- # all that people write
a: |
  two
  lines
b: >-
  one
  line
? c
: - {d: 'it''s', "e": "\\u00e9", f: !!str 5}
  -
g: plain text over
  two lines
"""


# Beyond these, JSON escapes a letter as two, which libyaml takes for none.
basic = st.text(st.characters(max_codepoint=0xD7FF), max_size=5)


@settings(max_examples=20, deadline=None)
@given(value=st.dictionaries(basic, st.none() | st.integers() | basic | st.lists(basic)))
def test_without_the_fast_parser_the_same_is_read(value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1) + BLOCKS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yaml.__with_libyaml__", False)
        slowly = list(yaml_documents(text))

    assert slowly == list(yaml_documents(text))
    assert slowly[0][0] == value


def test_lines_are_known_whatever_json_escapes(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": "\\ud83d\\ude00",\n"b": 1}')

    (document,) = read_documents(str(file))

    assert (document.value["a"], document.lines.at("/b")) == ("\N{GRINNING FACE}", 2)
