"""What a rollout went through, as the audit has it.

A rollout is written at every look, and few versions of a resource are kept: its first steps are
soon not among them. Every step is in the audit, for a month.
"""

import json
from typing import Any

from lmos_mesh import audit, subjects
from lmos_mesh.bus import Bus
from lmos_mesh.messages import ResourceVersion
from lmos_mesh.transport import CHANGE_SEQUENCE

_PAGE = 1000


async def steps_before(bus: Bus, tenant: str, rollout: str, at: float) -> list[ResourceVersion]:
    """The steps of a rollout before a time, the latest first; they have no revision.

    Args:
        bus: Where the audit is.
        tenant: Whose rollout.
        rollout: As `{namespace}/{name}`.
        at: Unix seconds.

    Raises:
        MeshError: The audit does not answer.
    """
    stream = bus.transport.stream(audit.AUDIT)
    found: list[ResourceVersion] = []
    after = 0
    while True:
        page = await stream.read(subjects.audit(tenant, "rollout"), limit=_PAGE, after=after)
        for packet in page:
            after = int(packet.headers.get(CHANGE_SEQUENCE, "0"))
            step = _step(packet.payload, rollout)
            if step is not None and step.at < at:
                found.append(step)
        if len(page) < _PAGE:
            return sorted(found, key=lambda one: -one.at)


def _step(payload: bytes, rollout: str) -> ResourceVersion | None:
    try:
        record: dict[str, Any] = json.loads(payload)
        if record["rollout"] != rollout:
            return None
        summary = f"{record['phase']}, {record['canary_weight']} %: {record['message']}"
        return ResourceVersion(revision=0, at=float(record["at"]), summary=summary)
    except (ValueError, KeyError, TypeError):
        return None  # written down by somebody else
