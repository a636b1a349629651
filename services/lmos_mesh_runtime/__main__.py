"""`python -m lmos_mesh_runtime`: run the runtime as this process."""

from lmos_mesh.service import run_service
from lmos_mesh_runtime.service import Runtime, RuntimeSettings


def main() -> None:
    """Run the runtime until it is told to stop."""
    run_service("runtime", RuntimeSettings, Runtime)


if __name__ == "__main__":
    main()
