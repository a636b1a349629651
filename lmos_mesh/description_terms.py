"""The words in which Descriptions are written and read. Pure."""

import re
from typing import cast
from urllib.parse import quote

from lmos_mesh.things import OUR_IDS

TYPES = {"agent": "lmos:Agent", "tool": "lmos:Tool"}
MORE_FIELDS = "mesh:fields"
_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]+\Z")


def urn_of(*names: str) -> str:
    """The id of what these names, tenant, name and subset, name."""
    return OUR_IDS + ":".join([_encoded(one) for one in names])


def _encoded(name: str) -> str:
    return name if _UNRESERVED.match(name) else quote(name, safe="")


def listed(value: object) -> list[object]:
    """What JSON-LD lets be one or a list of them, as a list."""
    return cast("list[object]", value) if isinstance(value, list) else [value]
