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


async def prepare(bus: Bus) -> None:
    """Have the audit stream made, so that what is written is kept."""
    await bus.transport.stream(AUDIT).read("lmos.none.audit.none", limit=1)


def write(bus: Bus, tenant: str, kind: str, what: Mapping[str, Any]) -> None:
    """Write down one act. The caller does not wait for the disk: an audit must not slow a turn."""
    record = {"at": time.time(), "by": bus.instance, **what}
    try:
        bus.transport.publish(subjects.audit(tenant, kind), json.dumps(record).encode())
    except MeshError as exc:
        logger.warning("could not audit %s: %s", kind, exc)
