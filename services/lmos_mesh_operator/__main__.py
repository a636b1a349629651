"""`python -m lmos_mesh_operator`: run the operator as this process."""

from lmos_mesh.service import run_service
from lmos_mesh_operator.service import Operator, OperatorSettings


def main() -> None:
    """Run the operator until it is told to stop."""
    run_service("operator", OperatorSettings, Operator)


if __name__ == "__main__":
    main()
