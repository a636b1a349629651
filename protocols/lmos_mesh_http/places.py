"""Under which address clients and other processes reach this adapter."""

import re
import socket
from contextlib import suppress
from urllib.parse import quote

from starlette.requests import Request

# Nothing that could end a header, a link or a string; that is what makes it safe to give back.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
_EVERYWHERE = ("0.0.0.0", "::")
_ELSEWHERE = "192.0.2.1"
_IN_A_PATH = ":@!$&'()*+,;=~"


class Places:
    """The URLs of this adapter.

    Args:
        public: What operators say that it is; empty if they do not.
        own: What it is as far as the adapter knows.
    """

    def __init__(self, *, public: str, own: str) -> None:
        self.prefix = public.rstrip("/")
        self._own = own

    @property
    def announced(self) -> str:
        """What others are told."""
        return self.prefix or self._own

    def base(self, request: Request) -> str:
        """What this client calls us, without a slash at the end."""
        if self.prefix:
            return self.prefix
        host = request.headers.get("host", "")
        if _HOST.fullmatch(host) is None:
            return self._own
        return f"{request.scope['scheme']}://{host}"


def thing_path(id: str) -> str:
    """Where a Thing is found in the directory."""
    return f"/things/{quote(id, safe=_IN_A_PATH)}"


def reachable_url(url: str, host: str, port: int) -> str:
    """The URL of a listening socket for others than this machine.

    A socket that listens everywhere has no address of its own; the one by which this machine
    reaches others will do. Nothing is sent to find it.
    """
    if host not in _EVERYWHERE:
        return url
    address = socket.gethostname()
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((_ELSEWHERE, 9))
        address = probe.getsockname()[0]
    return f"http://{address}:{port}"
