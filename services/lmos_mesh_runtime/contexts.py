"""What an agent is told of a turn, beside its input. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmos_mesh.invocation import Circumstances
from lmos_mesh.messages import Converse, Utterance
from lmos_mesh_runtime.routing import Way

_SHADOW = ".shadow"


def circumstances_of(
    request: Converse,
    way: Way,
    *,
    conversation: str,
    turn: str,
    history: Sequence[Utterance],
    settings: Mapping[str, Any],
    message: str | None = None,
    handovers: Sequence[str] = (),
    shadow: bool = False,
) -> Circumstances:
    """Who asks, on what way, and what was said before.

    The message is the user's own if none is given: an agent may be asked for a part of it only, or
    for what another one makes of it.

    A shadow gets a conversation id of its own, so that what the agent keeps of it does not mix
    with what it keeps of the user's.
    """
    return Circumstances(
        message=request.message if message is None else message,
        conversation=conversation + _SHADOW if shadow else conversation,
        turn=turn,
        channel=way.channel,
        subset=way.subset,
        user=request.user or "",
        history=tuple(history),
        settings=dict(settings),
        parameters=request.parameters,
        attributes=request.attributes,
        user_token=request.user_token,
        anonymization=request.anonymization,
        handovers=tuple(handovers),
        shadow=shadow,
    )
