"""A mesh of AI agents on NATS."""
