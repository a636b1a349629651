"""The operator: makes the mesh match what people applied."""
