"""The runtime: carries a conversation to its answer."""

from lmos_mesh_runtime.service import Runtime, RuntimeSettings

__all__ = ["Runtime", "RuntimeSettings"]
