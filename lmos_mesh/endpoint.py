"""What a message is, and what one question on the bus looks like: its subject and its types."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """Base of everything said on the bus: immutable; unknown fields are kept and ignored.

    Fields may be added with a default; they are never renamed or removed.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)


RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[RequestT, ReplyT]):
    """One question the mesh answers, as `lmos.{tenant}.{service}.{operation}`.

    Callers and servers share the same value, so a type checker sees when they disagree.
    """

    service: str
    operation: str
    request: type[RequestT]
    reply: type[ReplyT]

    def subject(self, tenant: str) -> str:
        """The subject for one tenant; `*` stands for all of them."""
        return f"lmos.{tenant}.{self.service}.{self.operation}"


@dataclass(frozen=True, slots=True)
class InstanceEndpoint(Generic[RequestT, ReplyT]):
    """One question that each process of a kind answers for itself.

    It is asked as `lmos.{tenant}.{service}.{instance}.{operation}`.
    """

    service: str
    operation: str
    request: type[RequestT]
    reply: type[ReplyT]

    def of(self, instance: str) -> Endpoint[RequestT, ReplyT]:
        """The question to one process.

        Args:
            instance: Its id, as a token.
        """
        return Endpoint(f"{self.service}.{instance}", self.operation, self.request, self.reply)
