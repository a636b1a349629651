"""The mDNS adapter: the mesh is seen on the local network, and sees what is there."""

from lmos_mesh_mdns.service import MdnsAdapter, MdnsSettings

__all__ = ["MdnsAdapter", "MdnsSettings"]
