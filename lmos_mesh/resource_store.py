"""Where resources are kept: every write says what it replaces, so that two can never fight."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmos_mesh.bus import Bus
from lmos_mesh.resource_index import Kept, ResourceKey, key_from, key_of, resource_from, value_of
from lmos_mesh.resources import Resource
from lmos_mesh.transport import Bucket, Entry

RESOURCES = Bucket(
    name="lmos_resources",
    history=64,
    tokens=3,
    feed="lmos.{{wildcard(1)}}.changed.resource.{{wildcard(2)}}.{{wildcard(3)}}",
)
RESOURCE_FEED = "lmos.*.changed.resource.*.*"


@dataclass(frozen=True, slots=True, kw_only=True)
class PastResource:
    """A resource as it was; None where it was deleted, or cannot be read."""

    revision: int
    at: float
    resource: Resource | None
    gone: bool = False


class ResourceStore:
    """Reads and writes resources."""

    def __init__(self, bus: Bus) -> None:
        self.bucket = bus.transport.key_value(RESOURCES)

    async def get(self, key: ResourceKey) -> Kept | None:
        """The resource as it is now; None if there is none."""
        entry = await self.bucket.get(key.token)
        return _kept(entry) if entry is not None else None

    async def put(self, resource: Resource, *, expected: int) -> int:
        """Keep a resource and return its revision.

        Args:
            resource: What to keep; its `resourceVersion` is of no account.
            expected: The revision that it replaces, 0 for none.

        Raises:
            Conflict: Another revision is there.
        """
        return await self.bucket.put(key_of(resource).token, value_of(resource), expected=expected)

    async def delete(self, key: ResourceKey, *, expected: int) -> int:
        """Forget a resource, its history included.

        Raises:
            Conflict: Another revision is there.
        """
        return await self.bucket.delete(key.token, expected=expected)

    async def history(self, key: ResourceKey) -> list[PastResource]:
        """The versions that are kept, oldest first."""
        return [
            PastResource(
                revision=one.number,
                at=one.at,
                resource=resource_from(key, one.value, one.number) if one.value else None,
                gone=one.value is None,
            )
            for one in await self.bucket.history(key.token)
        ]

    async def all(self) -> Sequence[Kept]:
        """Every resource there is and can be read."""
        found = (_kept(entry) for entry in await self.bucket.entries())
        return [one for one in found if one is not None]


def _kept(entry: Entry) -> Kept | None:
    key = key_from(entry.key)
    if key is None:
        return None
    resource = resource_from(key, entry.value, entry.revision)
    return Kept(key=key, resource=resource, revision=entry.revision) if resource else None
