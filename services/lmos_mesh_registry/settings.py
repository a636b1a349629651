"""What an operator can set about the registry."""

from pydantic import Field

from lmos_mesh.settings import Settings


class RegistrySettings(Settings):
    """Settings of the registry.

    Attributes:
        registry_forget_after_s: How long an agent without any instance stays listed.
        registry_foreign_tenant: The tenant that agents hosted with other software enter.
        registry_mesh: What this mesh is called by others that mirror it.
        registry_peers: Other meshes to mirror: URLs of their HTTP directories, or `NAME=URL`,
            separated by commas.
        registry_peer_tenant: The tenant that their Things enter; our own by default.
        registry_peer_stale_s: How long their Things stay when a mesh does not answer any more.
    """

    registry_forget_after_s: float = Field(default=24 * 3600.0, gt=0)
    registry_foreign_tenant: str = ""
    registry_sweep_s: float = Field(default=60.0, gt=0)
    registry_mesh: str = ""
    registry_peers: str = ""
    registry_peer_tenant: str = ""
    registry_peer_stale_s: float = Field(default=30.0, ge=2)
