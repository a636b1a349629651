"""The typed message of the `echo` work, for the contenders that speak pydantic."""

from pydantic import BaseModel, ConfigDict


class Work(BaseModel):
    """About 1 KiB of what an agent is typically sent; see `work.message_fields` for the values."""

    model_config = ConfigDict(frozen=True)

    number: int
    tenant: str
    conversation: str
    capability: str
    question: str
    history: list[str]
    metadata: dict[str, str]
    created: float
    urgent: bool
