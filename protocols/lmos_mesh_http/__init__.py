"""The HTTP adapter: the mesh for everything that speaks HTTP."""

from lmos_mesh_http.service import HttpAdapter, HttpSettings

__all__ = ["HttpAdapter", "HttpSettings"]
