"""What a cluster would not take of a resource, though the mesh does: names and labels. Pure.

The mesh takes nearly any name, as agents have them. Kubernetes does not, and what it refuses cannot
be mirrored to it (docs/kubernetes.md).
"""

import re
from collections.abc import Iterator

from lmos_mesh.json_faults import Fault, pointer, quoted
from lmos_mesh.resources import Resource

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_NAME_LENGTH = 253
_LABEL_LENGTH = 63

_SO = "so that it cannot be mirrored to a cluster"


def cluster_faults(resource: Resource) -> list[Fault]:
    """Every reason why Kubernetes would refuse a resource: its place, and what to write instead."""
    return list(_faults(resource))


def _faults(resource: Resource) -> Iterator[Fault]:
    metadata = resource.metadata
    if len(metadata.name) > _NAME_LENGTH or not _NAME.fullmatch(metadata.name):
        allowed = "lower-case letters, digits, `-` and `.`, a letter or digit at both ends"
        yield _fault(pointer("metadata", "name"), metadata.name, "name", allowed)
    if len(metadata.namespace) > _LABEL_LENGTH or not _NAMESPACE.fullmatch(metadata.namespace):
        allowed = f"at most {_LABEL_LENGTH} lower-case letters, digits and `-`"
        yield _fault(pointer("metadata", "namespace"), metadata.namespace, "namespace", allowed)
    allowed = f"at most {_LABEL_LENGTH} letters, digits, `-`, `_` and `.`, none of these at an end"
    for name, value in metadata.labels.items():
        if len(value) > _LABEL_LENGTH or not _LABEL.fullmatch(value):
            yield _fault(pointer("metadata", "labels", name), value, "value of a label", allowed)


def _fault(at: str, found: str, what: str, allowed: str) -> Fault:
    said = f"{quoted(found)} is no {what} that Kubernetes takes ({allowed}), {_SO}"
    return {"field": at, "description": said}
