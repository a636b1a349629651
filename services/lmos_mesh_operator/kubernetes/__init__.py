"""The operator in a Kubernetes cluster: its objects and the mesh's resources say the same."""
