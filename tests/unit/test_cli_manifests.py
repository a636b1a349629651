"""Files, folders and lists of resources: what is read from them, and in which order."""

import json
from pathlib import Path

import pytest

from lmos_mesh.cli.manifests import Manifest, Refused, files_of, read_manifests
from lmos_mesh.cli.validate import validate
from lmos_mesh.errors import NotFound

EXAMPLES = Path(__file__).parents[2] / "examples" / "channels"

# Written as the documentation of LMOS writes them: by id only, by name only, with both.
AS_IN_LMOS = """
apiVersion: lmos.eclipse/v1
kind: Agent
metadata:
  name: contract-agent
  labels:
    version: "1.0.0"
    subset: stable
spec:
  description: Knows the contracts of customers
  supportedTenants:
    - acme
  supportedChannels:
    - web
    - ivr
  providedCapabilities:
    - id: show-contract-id
      name: show-contract
      version: 1.1.0
      description: Shows a contract
      examples:
        - show my contract
    - name: end-contract
      version: 1.1.0
      description: Ends a contract
---
apiVersion: "lmos.eclipse/v1"
kind: "Channel"
metadata:
  name: "acme-web-stable"
  labels:
    channel: "web"
    version: 1.0.0
    tenant: "acme"
    subset: "stable"
spec:
  requiredCapabilities:
    - id: "urn:acme:capability:contract:show"
      version: "1.0.0"
    - name: end-contract
      version: ">=1.0.0"
      strategy: HIGHEST
---
apiVersion: "lmos.eclipse/v1"
kind: "ChannelRouting"
metadata:
  creationTimestamp: "2026-01-23T13:15:25.489340700Z"
  generation: 1
  labels:
    tenant: "acme"
    channel: "web"
  name: "acme-web-stable"
  ownerReferences:
    - apiVersion: "lmos.eclipse/v1"
      kind: "Channel"
      name: "acme-web-stable"
      uid: "00000000-0000-0000-0000-000000000001"
  resourceVersion: "8"
  uid: "00000000-0000-0000-0000-000000000002"
spec:
  capabilityGroups:
    - name: "contract-agent"
      description: "Knows the contracts of customers"
      capabilities:
        - id: "urn:acme:capability:contract:show"
          requiredVersion: "1.0.0"
          providedVersion: "1.0.0"
          description: "Shows a contract"
          host: "contract-agent.default.svc.cluster.local"
---
apiVersion: lmos.eclipse/v1
kind: ChannelRollout
metadata:
  name: acme-web
spec:
  strategy:
    canary:
      canaryChannel:
        name: acme-web-canary
        weight: 10
      stableChannel:
        name: acme-web-stable
        weight: 90
"""


def channel(name: str, labels: str = "channel: web", namespace: str = "default") -> str:
    return (
        f"apiVersion: lmos.eclipse/v1\nkind: Channel\n"
        f"metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n"
        f"spec: {{requiredCapabilities: []}}\n"
    )


def rollout(canary: str, stable: str) -> str:
    return (
        "apiVersion: lmos.eclipse/v1\nkind: ChannelRollout\nmetadata: {name: new}\n"
        f"spec: {{strategy: {{canary: {{canaryChannel: {{name: {canary}}}, "
        f"stableChannel: {{name: {stable}}}}}}}}}\n"
    )


def read(tmp_path: Path, *texts: str) -> tuple[list[Manifest], list[Refused]]:
    files: list[str] = []
    for number, text in enumerate(texts):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, "utf-8")
        files.append(str(file))
    return read_manifests(files)


def test_resources_as_lmos_writes_them_are_taken(tmp_path: Path) -> None:
    found, refused = read(tmp_path, AS_IN_LMOS)

    assert refused == []
    assert [one.kind for one in found] == ["Agent", "Channel", "ChannelRouting", "ChannelRollout"]


def test_the_examples_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert validate([EXAMPLES], as_json=True) == 0

    kinds = {one["kind"] for one in json.loads(capsys.readouterr().out)}
    assert kinds == {"Agent", "Channel", "ChannelRollout"}


def test_the_examples_fit_each_other() -> None:
    found, refused = read_manifests([str(EXAMPLES)])

    assert refused == []
    assert [one.kind for one in found] == [
        "Agent",
        "Channel",
        "Channel",
        "Channel",
        "ChannelRollout",
    ]


def test_a_folder_is_what_is_in_it_and_below(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "c/d.json", "c/e.txt", ".hidden.yaml", ".git/x.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")

    assert [Path(one).name for one in files_of(str(tmp_path))] == ["a.yaml", "b.yml", "d.json"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="no YAML or JSON file"):
        files_of(str(tmp_path / "empty"))


def test_a_list_is_what_it_holds_with_its_lines(tmp_path: Path) -> None:
    good, bad = "{kind: Agent, apiVersion: lmos.eclipse/v1,", "\n   metadata: {name: a}, spec: "
    text = f"kind: List\napiVersion: v1\nitems:\n- {good}{bad}{{}}}}\n- {good}{bad}{{id: 5}}}}\n"

    found, refused = read(tmp_path, text)

    assert [one.where.rpartition("/")[2] for one in found] == ["0.yaml (item 1)"]
    assert refused[0].where.endswith("0.yaml (item 2)")
    assert list(refused[0].sentences()) == [
        "line 7, /spec/id: must be a string, not a number; put it in quotes"
    ]


def test_several_faults_in_several_files_are_all_told(tmp_path: Path) -> None:
    wrong = channel("x").replace("requiredCapabilities: []", "requiredCapabilities: 5, no: 1")

    _, refused = read(tmp_path, wrong, "hello: world", "a: [", channel("y", "tenant: acme"))

    assert [len(one.faults) for one in refused] == [2, 1, 1, 1]
    told = [sentence for one in refused for sentence in one.sentences()]
    assert any("/spec/no: is no member of `spec`" in one for one in told)
    assert any("is no resource, as it has no `apiVersion`" in one for one in told)
    assert any("`channel` is missing" in one for one in told)


def test_two_channels_for_one_place_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    _, refused = read(tmp_path, channel("a"), channel("b", "channel: web, subset: stable"))

    (one,) = refused
    assert one.where.endswith("1.yaml")
    assert 'Channel "a"' in one.faults[0]["description"]


def test_channels_of_other_places_stand_side_by_side(tmp_path: Path) -> None:
    _, refused = read(
        tmp_path,
        channel("a"),
        channel("b", "channel: web, subset: canary"),
        channel("c", "channel: web, tenant: acme"),
        channel("d", namespace="other"),
    )

    assert refused == []


def test_what_is_written_twice_is_applied_twice_and_said(tmp_path: Path) -> None:
    found, refused = read(tmp_path, channel("a"), channel("a"))

    assert refused == []
    assert [len(one.notes) for one in found] == [0, 1]
    assert found[1].notes[0].startswith("replaces the one from ")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("channel: web", "two Channels of subset"),
        ("channel: ivr, subset: canary", "both must be of one tenant and channel"),
        ("channel: web, subset: canary, tenant: other", "both must be of one tenant and channel"),
    ],
)
def test_a_rollout_moves_one_channel_from_one_subset_to_another(
    tmp_path: Path, labels: str, words: str
) -> None:
    _, refused = read(tmp_path, channel("a"), channel("b", labels), rollout("b", "a"))

    told = [sentence for one in refused for sentence in one.sentences()]
    assert any(words in one and "/spec/strategy/canary" in one for one in told)


def test_a_rollout_of_channels_that_are_there_already_is_left_to_the_operator(
    tmp_path: Path,
) -> None:
    assert read(tmp_path, channel("a"), rollout("b", "a"))[1] == []
    assert read(tmp_path, channel("a"), channel("b", namespace="x"), rollout("b", "a"))[1] == []


@pytest.mark.parametrize("name", ["Web", "my_web", "-web", "web.", "we..b", "straße"])
def test_a_name_that_no_cluster_takes_is_taken_and_told(tmp_path: Path, name: str) -> None:
    found, refused = read(tmp_path, channel(name))

    assert refused == []
    (note,) = found[0].notes
    assert note.startswith("line 3, /metadata/name: ")
    assert "cannot be mirrored to a cluster" in note


@pytest.mark.parametrize("name", ["web", "0a", "a-b.c", "a" * 64 + ".b", "w" * 200])
def test_a_name_that_a_cluster_takes_needs_no_note(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, channel(name))[0][0].notes == ()


def test_labels_and_namespaces_that_no_cluster_takes_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(channel("web", f"channel: web, tenant: {'t' * 64}, subset: a b", "My_Space"))

    assert validate([file], as_json=True) == 0
    (verdict,) = json.loads(capsys.readouterr().out)
    at = [note.split(":")[0] for note in verdict["notes"]]
    assert at == [
        "line 3, /metadata/namespace",
        "line 3, /metadata/labels/tenant",
        "line 3, /metadata/labels/subset",
    ]
    found, _ = read_manifests([str(EXAMPLES)])
    assert [note for one in found for note in one.notes] == []


def test_what_cannot_stand_side_by_side_is_not_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "all.yaml"
    both = channel("a"), channel("b", "channel: ivr, subset: canary"), rollout("b", "a")
    file.write_text("---\n".join(both))

    assert validate([file], as_json=True) == 1

    verdicts = json.loads(capsys.readouterr().out)
    assert [one["valid"] for one in verdicts] == [True, True, False]
    (fault,) = verdicts[2]["faults"]
    assert (fault["line"], fault["field"]) == (14, "/spec/strategy/canary")
