"""Which of this machine's networks are used, and which addresses belong to them. Pure."""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Unreachable(ValueError):
    """Nobody on the local network could reach what would be announced; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One address of one of this machine's interfaces."""

    name: str
    address: Address
    network: Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the local network reaches an HTTP adapter.

    Attributes:
        prefix: What all its paths begin with; empty for most.
    """

    scheme: str
    addresses: tuple[str, ...]
    port: int
    prefix: str = ""


def interface(name: str, address: str, prefix_length: int) -> Interface:
    """An interface of an address, e.g. `192.168.1.7` with 24."""
    of = ipaddress.ip_interface(f"{address.partition('%')[0]}/{prefix_length}")
    return Interface(name=name, address=of.ip, network=of.network)


def chosen(present: Iterable[Interface], wanted: Sequence[str]) -> tuple[Interface, ...]:
    """The interfaces to use: those named, by name or address; without any, all but loopback."""
    return tuple(
        sorted(
            (
                one
                for one in present
                if (
                    one.name in wanted or str(one.address) in wanted
                    if wanted
                    else not one.address.is_loopback
                )
            ),
            key=lambda one: (one.address.version, one.address.packed, one.name),
        )
    )


def multicast_addresses(interfaces: Iterable[Interface]) -> list[str]:
    """The addresses to speak from. DNS-SD is spoken over IPv4, and tells of IPv6 too."""
    return [str(one.address) for one in interfaces if one.address.version == 4]


def networks_from(text: str) -> tuple[Network, ...]:
    """Networks separated by commas.

    Raises:
        ValueError: One of them is no network.
    """
    return tuple(ipaddress.ip_network(one.strip()) for one in text.split(",") if one.strip())


def place_of(
    url: str,
    interfaces: Sequence[Interface],
    *,
    here: bool = True,
    resolved: Sequence[str] = (),
    answering: Sequence[str] = (),
) -> Place:
    """Where the network of these interfaces reaches an HTTP adapter.

    Args:
        url: What the adapter says of itself.
        interfaces: Those that are used.
        here: Whether it runs on this machine: all addresses of another one are not known here.
        resolved: The addresses of the URL's host, where that is a name.
        answering: The addresses of this machine where it was tried and answers.

    Raises:
        Unreachable: There is no such place.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or {"https": 443}.get(parts.scheme, 80)
    addresses = _addresses_of(host, resolved)
    usable: list[Address] = []
    for one in addresses:
        if one.is_unspecified:
            if not here:
                raise Unreachable(
                    f"the HTTP adapter at {url} is on another machine, which does not say its"
                    " address; run the mDNS adapter on that machine too"
                )
            # What is bound to `::` takes IPv4 as well; link-local IPv6 needs a scope to reach.
            usable += [
                own.address
                for own in interfaces
                if (own.address.version == 4 or one.version == 6) and not _is_scoped(own.address)
            ]
        else:
            usable.append(one)
    if not _is_loopback(host):
        usable = [ipaddress.ip_address(one) for one in answering] or usable
    only_loopback = all(own.address.is_loopback for own in interfaces)
    reached = [one for one in usable if one.is_loopback == only_loopback]
    if not reached:
        if any(one.is_loopback for one in usable):
            raise Unreachable(
                f"the HTTP adapter listens at {url} only, which nobody else on the network"
                " reaches; set LMOS_HTTP_HOST=0.0.0.0 to be found there"
            )
        raise Unreachable(
            f"the HTTP adapter at {url} has no address that the interfaces in use reach;"
            " see LMOS_MDNS_INTERFACES"
        )
    return Place(
        scheme=parts.scheme,
        addresses=tuple(dict.fromkeys(str(one) for one in reached)),
        port=port,
        prefix=parts.path.rstrip("/"),
    )


def dialled(interfaces: Iterable[Interface]) -> list[str]:
    """The addresses of the interfaces that others can dial."""
    return [str(one.address) for one in interfaces if not _is_scoped(one.address)]


def near(
    addresses: Iterable[str], interfaces: Sequence[Interface], more: Sequence[Network] = ()
) -> tuple[str, ...]:
    """Those of a record's addresses that belong to the networks in use, IPv4 first.

    Anybody may announce any address. Whoever followed one anywhere would fetch what the announcer
    cannot reach, e.g. from this machine's own loopback.
    """
    networks = [*(one.network for one in interfaces), *more]
    loopback = any(one.address.is_loopback for one in interfaces)
    found: list[Address] = []
    for text in addresses:
        try:
            one = ipaddress.ip_address(text)
        except ValueError:
            continue  # with a scope: only this machine knows what it means
        if one.is_multicast or one.is_unspecified or _is_scoped(one):
            continue
        if one.is_loopback and not loopback:
            continue
        if any(one in network for network in networks):
            found.append(one)
    return tuple(str(one) for one in sorted(set(found), key=lambda one: (one.version, one.packed)))


def _is_loopback(host: str) -> bool:
    """Whether a URL says that it is for this machine alone; others may listen at its port."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_scoped(address: Address) -> bool:
    return address.version == 6 and address.is_link_local


def _addresses_of(host: str, resolved: Sequence[str]) -> list[Address]:
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        return [ipaddress.ip_address(one) for one in resolved]
