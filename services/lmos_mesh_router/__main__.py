"""`python -m lmos_mesh_router`: run the router as this process."""

from lmos_mesh.service import run_service
from lmos_mesh_router.service import Router, RouterSettings


def main() -> None:
    """Run the router until it is told to stop."""
    run_service("router", RouterSettings, Router)


if __name__ == "__main__":
    main()
