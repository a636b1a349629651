"""`python -m lmos_mesh_http`: run the HTTP adapter as this process."""

from lmos_mesh.service import run_service
from lmos_mesh_http.service import HttpAdapter, HttpSettings


def main() -> None:
    """Run the HTTP adapter until it is told to stop."""
    run_service("http", HttpSettings, HttpAdapter)


if __name__ == "__main__":
    main()
