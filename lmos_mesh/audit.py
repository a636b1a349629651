"""Who did what, written down for good. Never the text of a message."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError
from lmos_mesh.transport import Log

logger = logging.getLogger(__name__)

AUDIT = Log(name="LMOS_AUDIT", subjects=("lmos.*.audit.>",), max_age_s=30 * 24 * 3600.0)


def asked_by(caller: str) -> dict[str, str]:
    """The part of a record that says who asked; nothing if nobody says so."""
    return {"asked_by": caller} if caller else {}


async def prepare(bus: Bus) -> None:
    """Have the audit stream made, so that what is written is kept."""
    await bus.transport.stream(AUDIT).read("lmos.none.audit.none", limit=1)


def write(bus: Bus, tenant: str, kind: str, what: Mapping[str, Any], *, caller: str = "") -> None:
    """Write down one act. The caller does not wait for the disk: an audit must not slow a turn.

    Args:
        bus: Whose act it is: its instance is noted as `by`.
        tenant: Whom it concerns.
        kind: What it was.
        what: All there is to say of it.
        caller: Who says that they asked for it (`Call.caller`), noted as `asked_by`.
    """
    record = {"at": time.time(), "by": bus.instance, **asked_by(caller), **what}
    try:
        bus.transport.publish(subjects.audit(tenant, kind), json.dumps(record).encode())
    except MeshError as exc:
        logger.warning("could not audit %s: %s", kind, exc)
