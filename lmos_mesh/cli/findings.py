"""What `lmos doctor` says of what it found. Pure."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lmos_mesh.cli.screen import plural
from lmos_mesh.messages import PeerState
from lmos_mesh.programs import PROTOCOLS, SERVICES, USUAL_ADAPTERS, roles_of

Verdict = Literal["fine", "note", "broken"]

# What does not work meanwhile.
_WITHOUT = {
    "registry": "nobody is found, and nobody can register",
    "router": "messages of users reach no agent (`lmos ask`, `/v1`), and texts are searched by "
    "words; agents register, are found and call each other all the same",
    "runtime": "messages of users are not answered (`lmos ask`, `/v1`)",
    "http": "no directory, no REST, no events over HTTP",
}
_UNASKED = {"http": "--no-http"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found; `remedy` says what to do unless all is well."""

    check: str
    verdict: Verdict
    said: str
    remedy: str = ""


def is_awaited(role: str, chosen: Collection[str]) -> bool:
    """Whether something is missing without it: an adapter that nobody has chosen is not."""
    return role in roles_of(SERVICES) or role in USUAL_ADAPTERS or role in chosen


def missing(role: str, *, chosen: Collection[str], here: bool) -> Finding:
    """What is to be said of a service or an adapter that does not answer.

    Args:
        role: Which.
        chosen: The processes of the meshes on this machine that are on this bus.
        here: Whether there is one.
    """
    lost = _WITHOUT.get(role, "")
    if here and not any(one == role or one.startswith(f"{role}-") for one in chosen):
        # Somebody has asked for none.
        return Finding(
            check=role,
            verdict="note",
            said=f"none was asked for{f': {lost}' if lost else ''}",
            remedy=f"`lmos up` without `{_UNASKED.get(role, f'--replicas {role}=0')}` starts it",
        )
    return Finding(
        check=role,
        verdict="note" if role in roles_of(PROTOCOLS) else "broken",
        said=f"does not answer on the bus{f': {lost}' if lost else ''}",
        remedy=f"lmos logs {role}" if here else "start it, for instance with `lmos up`",
    )


def peer_finding(peer: PeerState, *, now: float) -> Finding:
    """Whether another mesh's Things are listed here, and how old what is known of them is."""
    heard = f"{ago(now - peer.heard_at)} ago" if peer.heard_at else "never"
    if not peer.answers:
        return Finding(
            check=f"peer {peer.origin}",
            verdict="note",
            said=f"does not answer, last heard {heard}: {peer.fault}",
            remedy=f"its Things are left out until it does; see whether {peer.url}/things "
            "can be read from here",
        )
    said = f"{plural(peer.things, 'Thing')}, last heard {heard} ({peer.url})"
    if peer.refused:
        return Finding(
            check=f"peer {peer.origin}",
            verdict="note",
            said=f"{said}; {peer.refused} of them are not valid and left out",
            remedy="lmos logs registry",
        )
    return Finding(check=f"peer {peer.origin}", verdict="fine", said=said)


def ago(seconds: float) -> str:
    """`3 s`, `5 min`, `2 h`."""
    if seconds < 100:
        return f"{max(0, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{round(seconds / 3600)} h"
