"""What is said and read in DNS-SD records: W3C WoT Discovery, section 6.2.1. Pure.

What is read was written by anybody on the network: everything is checked, nothing is trusted.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from lmos_mesh.things import DEFAULT_SUBSET, ThingKey
from lmos_mesh_mdns.networks import Interface, Network, Place, near

SERVICE = "_wot._tcp.local."
DIRECTORY = "_directory._sub._wot._tcp.local."
WELL_KNOWN = "/.well-known/wot"
# Our own TXT key, beside those of the W3C: which process announces it.
ANNOUNCER = "mesh"

# RFC 6763, section 6.1 and 6.2: one pair, and what all of them should stay under.
_PAIR_BYTES = 255
_TEXT_BYTES = 1300
_LABEL_BYTES = 63
# Room for the number that a name gets if it is taken.
_NUMBER_BYTES = 6

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_UNSAFE_IN_PATH = re.compile("[\\x00-\\x20\\x7f-\\x9f\\\\#\\u2028\\u2029]")

Kind = Literal["Thing", "Directory"]


class UnusableRecord(ValueError):
    """A service that is announced cannot be read; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One service that the local network is told of.

    Attributes:
        label: What people see.
        other_label: What they see where the label is taken by another service of ours.
        text: The pairs of its TXT record.
    """

    label: str
    other_label: str
    addresses: tuple[str, ...]
    port: int
    text: tuple[tuple[str, str], ...]
    directory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the Description of a service that was found is.

    Attributes:
        address: The address to ask.
        host: What the SRV record calls it.
        announcer: The process of a mesh that announces it; empty for everybody else.
    """

    kind: Kind
    scheme: str
    address: str
    port: int
    host: str
    path: str
    announcer: str = ""

    @property
    def url(self) -> str:
        """Its URL, by its address."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def directory_announcement(place: Place, tenant: str, announcer: str) -> Announcement:
    """How the directory of a tenant is announced."""
    text = _text(place, f"{place.prefix}{WELL_KNOWN}", "Directory", announcer)
    label, other = _labels(f"LMOS {tenant}", tenant)
    return Announcement(
        label=label,
        other_label=other,
        addresses=place.addresses,
        port=place.port,
        text=text,
        directory=True,
    )


def thing_announcement(place: Place, key: ThingKey, announcer: str) -> Announcement | None:
    """How an agent or a tool is announced; None if its name is too long for a TXT record."""
    name, subset = quote(key.name, safe=""), quote(key.subset, safe="")
    text = _text(place, f"{place.prefix}/agents/{name}/{subset}{WELL_KNOWN}", "Thing", announcer)
    if any(len(f"{member}={value}".encode()) > _PAIR_BYTES for member, value in text):
        return None
    shown = key.name if key.subset == DEFAULT_SUBSET else f"{key.name} ({key.subset})"
    label, other = _labels(shown, "\x00".join(key))
    return Announcement(
        label=label, other_label=other, addresses=place.addresses, port=place.port, text=text
    )


def announced(
    place: Place, tenant: str, things: Iterable[ThingKey], announcer: str, *, limit: int
) -> tuple[dict[ThingKey | None, Announcement], list[ThingKey]]:
    """Everything to announce, the directory as None, and what is left out.

    Args:
        place: Where the HTTP adapter is reached.
        tenant: Whose directory it is.
        things: What is alive.
        announcer: Our own instance.
        limit: How many Things are announced at most: the first by name. The directory has all.
    """
    wanted: dict[ThingKey | None, Announcement] = {
        None: directory_announcement(place, tenant, announcer)
    }
    left_out: list[ThingKey] = []
    for key in sorted(things):
        one = thing_announcement(place, key, announcer) if len(wanted) <= limit else None
        if one is None:
            left_out.append(key)
        else:
            wanted[key] = one
    return wanted, left_out


def target_of(
    *,
    server: str,
    port: int,
    addresses: Iterable[str],
    text: bytes,
    properties: Mapping[bytes, bytes | None],
    interfaces: Sequence[Interface],
    networks: Sequence[Network] = (),
) -> Target:
    """Where the Description of an announced service is.

    Raises:
        UnusableRecord: Its records cannot be used.
    """
    if len(text) > _TEXT_BYTES:
        raise UnusableRecord(f"its TXT record has {len(text)} bytes, more than {_TEXT_BYTES}")
    told = _told(properties)
    scheme = told.get("scheme", "").lower() or "http"
    if scheme not in ("http", "https"):
        raise UnusableRecord(f"its scheme is {scheme!r}; only http and https are read")
    if not 0 < port < 65536:
        raise UnusableRecord(f"its port is {port}")
    reached = near(addresses, interfaces, networks)
    if not reached:
        raise UnusableRecord(
            f"none of its addresses ({', '.join(list(addresses)[:4]) or 'it has none'}) is on"
            " the local network; see LMOS_MDNS_NETWORKS"
        )
    host = server.rstrip(".")
    return Target(
        kind=_kind(told.get("type", "")),
        scheme=scheme,
        address=reached[0],
        port=port,
        host=host if _HOST.fullmatch(host) else reached[0],
        path=_path(told.get("td", "") or WELL_KNOWN),
        announcer=told.get(ANNOUNCER, ""),
    )


def _kind(stated: str) -> Kind:
    kind = stated.capitalize() or "Thing"
    if kind not in ("Thing", "Directory"):
        raise UnusableRecord(f"its type is {stated!r}; only Thing and Directory are known")
    return kind


def _path(stated: str) -> str:
    """An absolute path, percent-encoded; a whole URL would lead elsewhere than the record says."""
    if not stated.startswith("/") or stated.startswith("//"):
        raise UnusableRecord(f"its td is {stated!r}, which is not an absolute path")
    if _UNSAFE_IN_PATH.search(stated):
        raise UnusableRecord(f"its td is {stated!r}, which has characters that no path has")
    return quote(stated, safe="/%:@!$&'()*+,;=?~-._")


def _told(properties: Mapping[bytes, bytes | None]) -> dict[str, str]:
    """The pairs that are text; keys are compared without case, as RFC 6763 has it."""
    told: dict[str, str] = {}
    for name, value in properties.items():
        try:
            told.setdefault(name.decode("ascii").lower(), (value or b"").decode())
        except UnicodeDecodeError:
            raise UnusableRecord(f"its TXT pair {name!r} is not UTF-8") from None
    return told


def _text(place: Place, path: str, kind: Kind, announcer: str) -> tuple[tuple[str, str], ...]:
    scheme = () if place.scheme == "http" else (("scheme", place.scheme),)
    return (("td", path), ("type", kind), *scheme, (ANNOUNCER, announcer))


def _labels(shown: str, identity: str) -> tuple[str, str]:
    """A DNS label for a name, and one that nothing else of ours has."""
    # Dots part labels for most of those who read them, whatever RFC 6763 says of escaping.
    plain = shown.replace(".", "-")
    mark = hashlib.blake2s(identity.encode(), digest_size=3).hexdigest()
    return (
        _cut(plain, _LABEL_BYTES - _NUMBER_BYTES),
        f"{_cut(plain, _LABEL_BYTES - _NUMBER_BYTES - len(mark) - 1)}-{mark}",
    )


def _cut(text: str, size: int) -> str:
    """As much of a text as fits into so many bytes of UTF-8."""
    return text.encode()[:size].decode(errors="ignore")
