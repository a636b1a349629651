"""What a caller may name in a path, a query or a header, and how long such a name may be.

Names become tokens of subjects and keys, and a server closes a connection whose subject is too
long; so none may be longer than this, whoever sends it.
"""

import re
from collections.abc import Mapping, Sequence

from starlette.exceptions import HTTPException

from lmos_mesh.errors import InvalidMessage
from lmos_mesh_http.negotiation import chosen

LONGEST = 128
PATTERN = r"^[^\x00-\x1f\x7f]+$"

_NAME = re.compile(r"[^\x00-\x1f\x7f]+")


def name(value: str, where: str) -> str:
    """A name that may be used.

    Args:
        value: The name.
        where: What it is, for the message.

    Raises:
        InvalidMessage: It is empty, too long, or holds control characters.
    """
    if len(value) > LONGEST:
        reason = f"has {len(value)} characters; {LONGEST} is the limit"
    elif not value:
        reason = "is missing or empty"
    elif _NAME.fullmatch(value) is None:
        reason = "has control characters"
    else:
        return value
    raise InvalidMessage(
        f"{where} {reason}", faults=[{"field": f"/{where}", "description": reason}]
    )


def header(headers: Mapping[str, str], named: str, default: str) -> str:
    """A name that a header gives, or the default without one.

    Raises:
        InvalidMessage: It cannot be used.
    """
    given = headers.get(named)
    return name(given, named) if given else default


def acceptable(headers: Mapping[str, str], offers: Sequence[str]) -> str:
    """The media type of the answer that the client likes best.

    Raises:
        HTTPException: It takes none of them (406).
    """
    media_type = chosen(headers.get("accept", ""), offers)
    if media_type is None:
        raise HTTPException(406, f"the request accepts none of {', '.join(offers)}")
    return media_type
