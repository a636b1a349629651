"""Schemas of others that our documents are checked against; `NOTICE` says whose they are."""
