"""Whose part of the mesh a request is about, where its path does not say."""

from typing import Annotated, Any

from fastapi import Depends, Header, Query

from lmos_mesh_http.parameters import LONGEST, PATTERN

TENANT = "lmos-tenant"

_RULES: dict[str, Any] = {"min_length": 1, "max_length": LONGEST, "pattern": PATTERN}


def _named(
    tenant: Annotated[
        str | None, Query(**_RULES, description="Whose mesh; this adapter's own tenant by default.")
    ] = None,
    header: Annotated[
        str | None,
        Header(alias=TENANT, **_RULES, description="The same as a header; the query is stronger."),
    ] = None,
) -> str | None:
    return tenant or header


Tenant = Annotated[str | None, Depends(_named)]
"""The tenant that a request names by its query or a header; None for the adapter's own."""
