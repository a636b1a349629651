"""`python -m lmos_mesh_registry`: run the registry as this process."""

from lmos_mesh.service import run_service
from lmos_mesh_registry.service import Registry
from lmos_mesh_registry.settings import RegistrySettings


def main() -> None:
    """Run the registry until it is told to stop."""
    run_service("registry", RegistrySettings, Registry)


if __name__ == "__main__":
    main()
