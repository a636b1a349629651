"""`python -m lmos_mesh_mdns`: run the mDNS adapter as this process."""

from lmos_mesh.service import run_service
from lmos_mesh_mdns.service import MdnsAdapter, MdnsSettings


def main() -> None:
    """Run the mDNS adapter until it is told to stop."""
    run_service("mdns", MdnsSettings, MdnsAdapter)


if __name__ == "__main__":
    main()
