"""What an operator can set about the router."""

from typing import Literal

from pydantic import Field

from lmos_mesh_router.encoder import Precision
from lmos_mesh_router.model_client import ModelSettings


class RouterSettings(ModelSettings):
    """Settings of the router.

    Attributes:
        router_method: How to decide where the caller does not say.
        router_threshold: The least confidence to route with, 0 to 1.
        router_encoder: The embedding model as it was published, or with weights of eight bits,
            which `lmos models install --int8` makes: faster, and a little less exact.
        router_threads: Cores for one embedding.
        router_feedback: Whether reported outcomes are kept.
    """

    router_method: Literal["vector", "llm", "hybrid"] = "vector"
    router_threshold: float = Field(default=0.5, ge=0, le=1)
    router_encoder: Precision = "fp32"
    router_threads: int = Field(default=1, ge=1)
    router_feedback: bool = False
