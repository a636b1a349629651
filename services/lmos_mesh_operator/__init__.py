"""The operator: makes the mesh match what people applied."""

from lmos_mesh_operator.service import Operator, OperatorSettings

__all__ = ["Operator", "OperatorSettings"]
