import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.semver import BadVersion, Range, Version, matches

numbers = st.integers(0, 4)
identifiers = st.one_of(numbers, st.sampled_from(["alpha", "beta", "rc-1", "-", "x0"]))
releases = st.builds(Version, major=numbers, minor=numbers, patch=numbers)
versions = st.builds(
    Version,
    major=numbers,
    minor=numbers,
    patch=numbers,
    prerelease=st.lists(identifiers, max_size=3).map(tuple),
    build=st.lists(st.sampled_from(["b", "001"]), max_size=2).map(tuple),
)

# From low to high, as SemVer 2.0 section 11 orders them.
ASCENDING = (
    "0.9.9",
    "1.0.0-0",
    "1.0.0-2",
    "1.0.0-11",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1-alpha",
    "1.2.0",
    "1.10.0",
)


@pytest.mark.parametrize(("lower", "higher"), list(itertools.pairwise(ASCENDING)))
def test_versions_are_ordered_by_precedence(lower: str, higher: str) -> None:
    assert Version.parse(lower) < Version.parse(higher)
    assert Version.parse(higher) > Version.parse(lower)
    assert Version.parse(higher) != Version.parse(lower)


@given(versions)
def test_a_version_reads_as_it_is_written(version: Version) -> None:
    again = Version.parse(str(version))

    assert again == version
    assert again.build == version.build


@given(versions, versions)
def test_the_order_is_total_and_agrees_with_equality(a: Version, b: Version) -> None:
    assert [a < b, a == b, a > b].count(True) == 1
    assert a != b or hash(a) == hash(b)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("1", "1.0.0"),
        ("1.0", "1.0.0"),
        ("v2.3", "2.3.0"),
        ("=1.2.3", "1.2.3"),
        (" 1.2.3 ", "1.2.3"),
        ("1.2.3+build.5", "1.2.3"),
    ],
)
def test_short_forms_are_taken(short: str, full: str) -> None:
    assert Version.parse(short) == Version.parse(full)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one",
        "1.",
        "1.2.3.4",
        "01.2.3",
        "1.2.3-01",
        "1.2.3-",
        "1.2.3-a..b",
        "2024-03",
        "-1.0.0",
        "1.2.x",
        "1.2.٣",
        "1.0.0\n2",
        "9" * 5000,
    ],
)
def test_what_is_no_version_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadVersion, match="is not a version; write it like"):
        Version.parse(text)


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        ("", "0.0.0 1.2.3 9.0.0", "1.0.0-beta"),
        ("*", "0.0.0 9.9.9", "1.0.0-beta"),
        ("1.2.3", "1.2.3 1.2.3+b", "1.2.4 1.2.3-a"),
        ("=1.2.3", "1.2.3", "1.2.2"),
        ("1", "1.0.0 1.9.9", "0.9.9 2.0.0 2.0.0-a"),
        ("1.0", "1.0.0 1.0.9", "1.1.0"),
        ("1.x", "1.0.0 1.9.9", "2.0.0"),
        ("1.2.X", "1.2.0 1.2.9", "1.3.0"),
        ("1.2.*", "1.2.0", "1.1.9"),
        (">1.2.3", "1.2.4 2.0.0", "1.2.3 1.3.0-a"),
        (">1", "2.0.0", "1.9.9"),
        (">1.2", "1.3.0", "1.2.9"),
        (">=1.2", "1.2.0 5.0.0", "1.1.9"),
        ("<2", "1.9.9", "2.0.0 2.0.0-a"),
        ("<=2", "2.9.9", "3.0.0"),
        ("<=2.1", "2.1.7", "2.2.0"),
        (">=1.0 <2.0", "1.0.0 1.9.9", "0.9.9 2.0.0"),
        (">= 1.0   < 2.0", "1.0.0", "2.0.0"),
        ("1.0 || >=3", "1.0.5 3.0.0", "2.0.0"),
        ("~1.2.3", "1.2.3 1.2.9", "1.3.0 1.2.2"),
        ("~1.2", "1.2.0 1.2.9", "1.3.0"),
        ("~>1", "1.0.0 1.9.9", "2.0.0"),
        ("^1.2.3", "1.2.3 1.9.0", "2.0.0 1.2.2 1.3.0-a"),
        ("^0.2.3", "0.2.3 0.2.9", "0.3.0 0.2.2"),
        ("^0.0.3", "0.0.3", "0.0.4"),
        ("^0.0", "0.0.0 0.0.9", "0.1.0"),
        ("^0", "0.0.0 0.9.9", "1.0.0"),
        ("^1.x", "1.0.0 1.9.9", "2.0.0"),
        ("1.2.3 - 2.3.4", "1.2.3 2.3.4", "1.2.2 2.3.5"),
        ("1.2 - 2", "1.2.0 2.9.9", "1.1.9 3.0.0"),
        ("1.2.3 - 2.3", "2.3.9", "2.4.0"),
        (">*", "", "0.0.0 1.0.0"),
        (">=1.0.0-beta.2", "1.0.0-beta.2 1.0.0-rc 1.0.0", "1.0.0-beta.1 1.1.0-beta.3"),
        ("^1.2.3-beta", "1.2.3-rc 1.2.3 1.5.0", "1.2.4-rc 2.0.0"),
        ("<1.0 >=1.0.0-alpha", "", "1.0.0-beta 1.0.0 0.9.0"),
    ],
)
def test_npm_ranges(wanted: str, inside: str, outside: str) -> None:
    assert [v for v in inside.split() if not matches(v, wanted)] == []
    assert [v for v in outside.split() if matches(v, wanted)] == []


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        ("[1.0,2.0]", "1.0.0 1.5.0 2.0.0", "0.9.9 2.0.1"),
        ("[1.0,2.0[", "1.0.0 1.9.9", "2.0.0 2.0.0-a"),
        ("]1.0,2.0]", "1.0.1 2.0.0", "1.0.0"),
        ("]1,2[", "1.0.1 1.9.9", "1.0.0 2.0.0"),
        ("(1.0,2.0)", "1.0.1 1.9.9", "1.0.0 2.0.0"),
        ("[1.0,)", "1.0.0 99.0.0", "0.9.9"),
        ("]1.0,)", "1.0.1", "1.0.0"),
        ("(,2.0]", "0.0.0 2.0.0", "2.0.1"),
        ("(,2.0[", "1.9.9", "2.0.0"),
        ("( , 2.0 [", "1.9.9", "2.0.0"),
        ("(,)", "0.0.0 9.9.9", "1.0.0-a"),
        ("[1.0.0-alpha,2.0[", "1.0.0-beta 1.5.0", "1.5.0-beta"),
        ("1.0.+", "1.0.0 1.0.9", "1.1.0"),
        ("1.+", "1.0.0 1.9.0", "2.0.0"),
        ("+", "0.0.0 9.0.0", "1.0.0-a"),
        ("latest", "0.0.0 9.0.0", "1.0.0-a"),
        ("latest.release", "0.0.0 9.0.0", "1.0.0-a"),
        ("latest.integration", "0.0.0 9.0.0 1.0.0-a", ""),
        ("[1.0,2.0[ || [3.0,)", "1.5.0 3.5.0", "2.5.0"),
    ],
)
def test_ivy_ranges(wanted: str, inside: str, outside: str) -> None:
    assert [v for v in inside.split() if not matches(v, wanted)] == []
    assert [v for v in outside.split() if matches(v, wanted)] == []


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "1.2.3.4",
        ">",
        "=>1.0",
        "==1",
        ">=1 - 2",
        "1.x.3",
        "x.1",
        "[1.0,2.0",
        "[1.0]",
        "[,2.0]",
        "[1.0,]",
        "[a,b]",
        "[1.0,2.0] >3",
        "1.0, 2.0",
        "^1.0 && ^2.0",
        "1." + "0" * 300,
    ],
)
def test_what_is_no_range_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadVersion) as caught:
        Range.parse(text)

    assert text[:40] in str(caught.value)


@given(st.text(alphabet="0123xX*+-~^<>=|[](), .avlatest\n٣\ud800", max_size=20))
def test_a_range_is_read_or_refused_but_never_breaks(text: str) -> None:
    try:
        admitted = Range.parse(text)
    except BadVersion:
        return
    assert admitted.admits(Version(major=1)) in (True, False)


@given(releases, releases)
def test_a_caret_admits_what_may_not_break_anybody(base: Version, version: Version) -> None:
    same_line = (
        version.major == base.major
        and (base.major > 0 or version.minor == base.minor)
        and (base.major > 0 or base.minor > 0 or version.patch == base.patch)
    )

    assert matches(version, f"^{base}") == (same_line and version >= base)


@given(releases, releases)
def test_a_tilde_admits_patches_only(base: Version, version: Version) -> None:
    same_line = (version.major, version.minor) == (base.major, base.minor)

    assert matches(version, f"~{base}") == (same_line and version >= base)


@given(versions, versions, versions)
def test_both_notations_mean_the_same(low: Version, high: Version, version: Version) -> None:
    assert matches(version, f"[{low},{high}[") == matches(version, f">={low} <{high}")
    assert matches(version, f"]{low},{high}]") == matches(version, f">{low} <={high}")
    assert matches(version, f"[{low},)") == matches(version, f">={low}")
    assert matches(version, f"{low} - {high}") == matches(version, f">={low} <={high}")


@given(versions, versions)
def test_a_prerelease_comes_only_to_who_named_its_release(base: Version, version: Version) -> None:
    if version.prerelease and matches(version, f">={base}"):
        assert base.prerelease
        assert version.release == base.release


@given(versions)
def test_every_version_is_in_the_range_that_names_it(version: Version) -> None:
    for wanted in (f"{version}", f"={version}", f">={version}", f"~{version}", f"^{version}"):
        assert matches(version, wanted)
    assert matches(version, "latest.integration")


def test_a_range_reads_as_it_was_written() -> None:
    assert str(Range.parse(">=1.0 <2")) == ">=1.0 <2"
