"""Reads Descriptions from services that anybody may have announced, and trusts none of them."""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from lmos_mesh_mdns.found import (
    UnusableAnswer,
    description_from,
    page_from,
    same_origin,
    things_url,
)
from lmos_mesh_mdns.records import Target

_REDIRECTS = 3
_PAGE = 100
_REDIRECTED = frozenset({301, 302, 303, 307, 308})


class NotRead(Exception):
    """A found service did not answer; worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a found service may cost.

    Attributes:
        timeout_s: For all of one Description, or all of one page.
        description_bytes: Of one Description.
        page_bytes: Of one page of a directory.
        things: Of one directory.
        pages: Of one directory; each may be nearly empty.
    """

    timeout_s: float
    description_bytes: int
    page_bytes: int
    things: int
    pages: int = 100


class Fetcher:
    """Asks the very address and port that the records name, and nobody else."""

    def __init__(self, client: httpx.AsyncClient, limits: Limits) -> None:
        self._client = client
        self._limits = limits

    @classmethod
    @asynccontextmanager
    async def open(cls, limits: Limits) -> "AsyncGenerator[Fetcher]":
        """A fetcher with connections of its own."""
        client = httpx.AsyncClient(
            # No proxy, no cookies, no netrc: what is on the local network is asked directly.
            trust_env=False,
            follow_redirects=False,
            timeout=limits.timeout_s,
            verify=ssl.create_default_context(),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            headers={
                "accept": "application/td+json, application/ld+json, application/json;q=0.9",
                # What is packed could unpack to any size.
                "accept-encoding": "identity",
                "user-agent": "lmos-mesh-mdns",
            },
        )
        async with client:
            yield cls(client, limits)

    async def description(self, target: Target) -> dict[str, Any]:
        """The Description at a target.

        Raises:
            NotRead: It does not answer, or not in time.
            UnusableAnswer: It answers something else.
        """
        body, _, _ = await self._get(target, target.url, self._limits.description_bytes)
        return description_from(body)

    async def things(self, target: Target, directory: dict[str, Any]) -> list[dict[str, Any]]:
        """The Descriptions that a directory lists, as many of them as are wanted.

        Raises:
            NotRead: It does not answer, or not in time.
            UnusableAnswer: It answers something else.
        """
        url = things_url(directory, target.url)
        url += f"{'&' if '?' in url else '?'}limit={_PAGE}"
        found: list[dict[str, Any]] = []
        visited: set[str] = set()
        while url and url not in visited and len(visited) < self._limits.pages:
            if not same_origin(url, target):
                raise UnusableAnswer(f"its list of Things is elsewhere, at {url[:200]!r}")
            visited.add(url)
            body, response, at = await self._get(target, url, self._limits.page_bytes)
            page, following = page_from(body)
            found += page
            if len(found) >= self._limits.things:
                break
            linked = response.links.get("next", {}).get("url", "") or following
            url = urljoin(at, linked) if linked else ""
        return found[: self._limits.things]

    async def invoke(
        self, target: Target, method: str, url: str, given: Any
    ) -> tuple[int, str, bytes]:
        """Send JSON to a found agent, and give the status, content type and body it answers with.

        The caller limits the time.

        Raises:
            NotRead: It does not answer.
            UnusableAnswer: It answers too much.
        """
        request = self._request(target, method, url, content=json.dumps(given).encode())
        try:
            response = await self._client.send(request, stream=True)
            try:
                body = await self._body(response, url, self._limits.page_bytes)
            finally:
                await response.aclose()
        except (httpx.TransportError, httpx.InvalidURL, OSError) as exc:
            raise NotRead(f"cannot call {url}: {str(exc) or type(exc).__name__}") from None
        if response.status_code in _REDIRECTED:
            raise UnusableAnswer(f"{url} redirects, which calls do not follow")
        return response.status_code, response.headers.get("content-type", ""), body

    async def _get(self, target: Target, url: str, limit: int) -> tuple[bytes, httpx.Response, str]:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                for _ in range(_REDIRECTS + 1):
                    body, response = await self._get_once(target, url, limit)
                    if response.status_code not in _REDIRECTED:
                        return body, response, url
                    url = urljoin(url, response.headers.get("location", ""))
                    if not same_origin(url, target):
                        raise UnusableAnswer(f"it redirects to another host, {url[:200]!r}")
        except TimeoutError:
            raise NotRead(f"no answer from {url} within {self._limits.timeout_s:g} s") from None
        except (httpx.TransportError, httpx.InvalidURL, OSError) as exc:
            said = str(exc) or type(exc).__name__
            raise NotRead(f"cannot read {url}: {said}") from None
        raise UnusableAnswer(f"it redirects more than {_REDIRECTS} times")

    async def _get_once(self, target: Target, url: str, limit: int) -> tuple[bytes, httpx.Response]:
        request = self._request(target, "GET", url)
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code in _REDIRECTED:
                return b"", response
            if response.status_code >= 500 or response.status_code == 429:
                raise NotRead(f"{url} answers with status {response.status_code}")
            if response.status_code != 200:
                raise UnusableAnswer(f"{url} answers with status {response.status_code}")
            return await self._body(response, url, limit), response
        finally:
            await response.aclose()

    def _request(
        self, target: Target, method: str, url: str, content: bytes | None = None
    ) -> httpx.Request:
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        written = {} if content is None else {"content-type": "application/json"}
        return self._client.build_request(
            method,
            httpx.URL(
                scheme=target.scheme,
                # Always the address of the record; its name may mean another one to a resolver.
                host=target.address,
                port=target.port,
                raw_path=path.encode("ascii", errors="ignore"),
            ),
            headers={"host": f"{_in_url(target.host)}:{target.port}", **written},
            content=content,
            extensions=self._extensions(target, content),
        )

    def _extensions(self, target: Target, content: bytes | None) -> dict[str, Any]:
        extensions: dict[str, Any] = {}
        if target.scheme == "https":
            extensions["sni_hostname"] = target.host
        if content is not None:
            # An agent may think for long; whoever calls says how long.
            extensions["timeout"] = {"connect": self._limits.timeout_s}
        return extensions

    async def _body(self, response: httpx.Response, url: str, limit: int) -> bytes:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise UnusableAnswer(f"{url} answers packed, although it was asked not to")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limit:
                raise UnusableAnswer(f"{url} answers with more than {limit} bytes")
        return bytes(body)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
