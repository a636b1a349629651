"""A call that may take minutes: whoever waits knows at once when the one that answers dies."""

import asyncio
import time
from collections.abc import Mapping
from typing import TypeVar

from lmos_mesh.bus import ASK_AGAIN_S, Bus
from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.errors import NobodyAnswers, StreamBroken
from lmos_mesh.reply_stream import Patience

_SILENT_S = 30.0

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)


async def watched(
    bus: Bus,
    endpoint: Endpoint[RequestT, ReplyT],
    request: RequestT,
    *,
    tenant: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
    nobody_s: float = 0.0,
) -> ReplyT:
    """As `Bus.call`. Cancelling calls the work off.

    Raises:
        InstanceLost: Who was at it has died.
        NobodyAnswers: Nobody answers there; worth another try.
        DeadlineExceeded: No answer in time.
        MeshError: The error the other side raised, as the same class.
    """
    patience = Patience(first_s=_SILENT_S, idle_s=_SILENT_S, total_s=timeout_s)
    until = time.monotonic() + nobody_s
    while True:
        try:
            async with bus.stream(
                endpoint, request, tenant=tenant, headers=headers, patience=patience
            ) as frames:
                async for frame in frames:
                    if frame.kind == "end":
                        return endpoint.reply.model_validate(frame.body)
        except NobodyAnswers:
            if time.monotonic() >= until:
                raise
            await asyncio.sleep(ASK_AGAIN_S)
        else:
            raise StreamBroken(f"{endpoint.operation} has ended without an answer")
