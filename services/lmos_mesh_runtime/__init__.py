"""The runtime: carries a conversation to its answer."""
