"""Meshes of processes that the integration tests stand on."""

from collections.abc import Callable, Generator

import pytest

from lmos_mesh.nats_config import Binary
from tests.conftest import new_name, session_server
from tests.integration.processes import Deployment

Deploy = Callable[..., Deployment]


@pytest.fixture(scope="session")
def services(
    nats_binary: Binary, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Deployment]:
    """All services on a server of theirs, two registries and two runtimes: use a tenant of yours.

    The server is not the one that tests share: services there would share the work of those that
    a test serves itself. Tests may add processes and end those; what is here at the beginning is
    left alone.
    """
    directory = tmp_path_factory.mktemp("services")
    with session_server(nats_binary, directory) as url:
        deployment = Deployment(url, directory)
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
