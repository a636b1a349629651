"""A JSON document that is sent piece by piece, as it may be longer than anybody wants to hold."""

from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmos_mesh_http.replies import send_in_time, while_there


class LongJson(Response):
    """Its pieces as they come. What fails midway breaks the connection off, so that it shows."""

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        media_type: str,
        stall_timeout_s: float,
    ) -> None:
        super().__init__(headers=dict(headers), media_type=media_type)
        del self.headers["content-length"]
        self._pieces = pieces
        self._stall_timeout_s = stall_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it as long as the client is there."""
        await while_there(receive, self._send(send, alone=scope["method"] == "HEAD"))

    async def _send(self, send: Send, *, alone: bool) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if not alone:
            async for piece in self._pieces:
                await send_in_time(send, piece, last=False, stall_timeout_s=self._stall_timeout_s)
        await send_in_time(send, b"", last=True, stall_timeout_s=self._stall_timeout_s)
