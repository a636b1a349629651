"""Meshes of processes that the integration tests stand on."""

from collections.abc import Callable, Generator

import pytest

from tests.conftest import new_name
from tests.integration.processes import Deployment

Deploy = Callable[..., Deployment]


@pytest.fixture(scope="session")
def services(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Deployment]:
    """All services on the shared server, two registries and two runtimes: use a tenant of yours.

    Tests may add processes and end those; what is here at the beginning is left alone.
    """
    deployment = Deployment(nats_url, tmp_path_factory.mktemp("services"))
    try:
        deployment.services("registry", "registry", "router", "runtime", "runtime")
        yield deployment
        deployment.check_stop()
    finally:
        deployment.stop()


@pytest.fixture
def tenant() -> str:
    """A tenant that nobody else uses."""
    return new_name("tenant")
