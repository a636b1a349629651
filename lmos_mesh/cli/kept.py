"""What `lmos doctor` says of the servers that keep the buckets and streams. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lmos_mesh.cli.findings import Finding
from lmos_mesh.cli.screen import plural

_BUCKET = "KV_"
_OURS = ("KV_lmos_", "LMOS_")
_NS = 1_000_000_000
# A server says every second that it is there.
_SILENT_S = 4.0
_NAMED = 4
_PAGE = "docs/nats-server.md#a-nats-cluster"
_NOT_AGREED = "more than half of the servers that keep them must run: start those that are down"

# What JetStream answers where its servers have no leader.
_NO_LEADER = (10008, 10009)


def no_jetstream(why: str, code: object, *, clustered: bool) -> Finding:
    """What is to be said when JetStream does not answer, or refuses.

    Args:
        why: What it said; empty if nothing.
        code: The number of its error.
        clustered: Whether the server is one of several.
    """
    told = f" ({why})" if why else ""
    if code in _NO_LEADER or (clustered and not why):
        return Finding(
            check="JetStream",
            verdict="broken",
            said=f"the servers of this cluster have not agreed who leads them{told}",
            remedy="more than half of them must run: start those that are down",
        )
    return Finding(
        check="JetStream",
        verdict="broken",
        said=f"this server has none{told}",
        remedy="start the server with JetStream (nats-server -js), or, where it has accounts, "
        "enable it for ours",
    )


def kept_findings(
    streams: Sequence[Mapping[str, Any]], missing: Sequence[str], *, wanted: int | None
) -> list[Finding]:
    """Who keeps the mesh's buckets and streams, and which servers are away.

    Args:
        streams: What JetStream says of each stream.
        missing: The names of those of which it says nothing, as nobody leads them.
        wanted: How many servers should keep each; None if nothing is said.
    """
    ours = [one for one in streams if _is_ours(one["config"]["name"])]
    by_count: dict[int, list[str]] = defaultdict(list)
    away: dict[str, list[str]] = defaultdict(list)
    why: dict[str, str] = {}
    leaderless = [name for name in missing if _is_ours(name)]
    alone: list[str] = []
    for one in ours:
        name, count = str(one["config"]["name"]), int(one["config"]["num_replicas"])
        by_count[count].append(name)
        cluster: Mapping[str, Any] = one.get("cluster") or {}
        if count == 1 and cluster.get("name"):
            alone.append(name)
        if cluster and not cluster.get("leader"):
            leaderless.append(name)
            continue
        for peer in cluster.get("replicas") or ():
            if fault := _fault(peer):
                away[str(peer["name"])].append(name)
                why.setdefault(str(peer["name"]), fault)
    found = [
        Finding(check="kept", verdict="fine", said=f"by {plural(count, 'server')}: {_all(names)}")
        for count, names in sorted(by_count.items())
    ]
    if leaderless:
        found.append(
            Finding(
                check="kept",
                verdict="broken",
                said=f"nobody leads {_all(leaderless)}: nothing is read or written there",
                remedy=_NOT_AGREED,
            )
        )
    found += [
        Finding(
            check="kept",
            verdict="note",
            said=f"server {peer} {why[peer]}; it keeps {_some(names)}, which others keep too",
            remedy="start it again: until then the loss of another one may stop the mesh",
        )
        for peer, names in sorted(away.items())
    ]
    low = [name for count, names in by_count.items() if count < (wanted or 1) for name in names]
    if low:
        found.append(
            Finding(
                check="kept",
                verdict="note",
                said=f"{_some(low)}: by fewer than the {wanted} servers that LMOS_NATS_REPLICAS "
                "asks for",
                remedy="the next process that is started with this setting raises it, and its log "
                "says why if it cannot",
            )
        )
    elif alone:
        found.append(
            Finding(
                check="kept",
                verdict="note",
                said=f"{_some(alone)}: by one server of a cluster; without it nothing of this "
                "can be used",
                remedy=f"LMOS_NATS_REPLICAS=3 for every process of the mesh; see {_PAGE}",
            )
        )
    return found


def _is_ours(name: str) -> bool:
    return name.startswith(_OURS)


def _fault(peer: Mapping[str, Any]) -> str:
    """What is wrong with one of the servers that keep a stream; empty if nothing is."""
    silent_s = int(peer.get("active", 0)) / _NS
    if peer.get("offline"):
        return "is away"
    if silent_s > _SILENT_S:
        return f"has been silent for {silent_s:.0f} s"
    if not peer.get("current"):
        return "is not up to date yet"
    return ""


def _all(names: Sequence[str]) -> str:
    return ", ".join(sorted(name.removeprefix(_BUCKET) for name in names))


def _some(names: Sequence[str]) -> str:
    shown = sorted(name.removeprefix(_BUCKET) for name in names)
    if len(shown) <= _NAMED:
        return ", ".join(shown)
    return f"{', '.join(shown[: _NAMED - 1])} and {len(shown) - _NAMED + 1} more"
