"""The HTTP application: every path, and how each kind of error leaves it."""

import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp

from lmos_mesh.bus import Bus
from lmos_mesh.errors import InvalidMessage, MeshError
from lmos_mesh.service import VERSION
from lmos_mesh.wrong_fields import description_of, pointer
from lmos_mesh.wrong_fields import told as told_faults
from lmos_mesh_http import lmos_rest, openai
from lmos_mesh_http.agent_routes import AgentRoutes, WholeSegments
from lmos_mesh_http.asking import Asker
from lmos_mesh_http.docs_page import add_docs
from lmos_mesh_http.edge import REQUEST_ID, Edge, request_id_of
from lmos_mesh_http.errors import (
    Fault,
    LmosError,
    OpenAIError,
    Problem,
    fault_of,
    http_fault,
    surface_of,
    told,
)
from lmos_mesh_http.event_routes import EventRoutes
from lmos_mesh_http.health import HealthRoutes, NotReady
from lmos_mesh_http.lmos_operator_routes import Channels, LmosOperatorRoutes
from lmos_mesh_http.lmos_routes import LmosRoutes
from lmos_mesh_http.openai_routes import OpenAIRoutes
from lmos_mesh_http.openapi import describe
from lmos_mesh_http.places import Places
from lmos_mesh_http.thing_routes import ThingRoutes

logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Ask a mesh of agents over HTTP.

* **LMOS runtime**: conversations that the mesh keeps, as Eclipse LMOS has them. Every path under
  `/apis/v1` is also under `/lmos/runtime/apis/v1`.
* **LMOS operator**: the channels of a tenant and who answers there.
* **OpenAI**: for everything that speaks to OpenAI; agents are its models.
* **Directory**: all that is on the mesh, as a Thing Description Directory of W3C WoT Discovery.
* **Agents**: their descriptions, and their actions, properties and events.
"""


# What web pages of other origins may read besides the body.
_SHOWN = (
    REQUEST_ID,
    "traceparent",
    "retry-after",
    "link",
    "location",
    "content-location",
    "etag",
)


def make_app(
    bus: Bus,
    asker: Asker,
    places: Places,
    channels: Channels,
    *,
    body_limit: int,
    stall_timeout_s: float,
    cors_origins: tuple[str, ...] = (),
) -> ASGIApp:
    """The application.

    Args:
        bus: Where the mesh is.
        asker: Asks it for answers.
        places: Under which URLs it is reached.
        channels: What is applied.
        body_limit: The most bytes that a request may have.
        stall_timeout_s: How long a client may read nothing of what is sent to it.
        cors_origins: Web pages of these origins may call; none by default.
    """
    app = FastAPI(
        title="lmos-mesh",
        version=VERSION,
        summary="A mesh of AI agents",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        # The spans are ours; FastAPI would look for somebody to tell at each request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    OpenAIRoutes(asker, body_limit=body_limit, stall_timeout_s=stall_timeout_s).add_to(app)
    LmosRoutes(asker, channels, body_limit=body_limit, stall_timeout_s=stall_timeout_s).add_to(app)
    LmosOperatorRoutes(asker, channels).add_to(app)
    ThingRoutes(asker, places, body_limit=body_limit, stall_timeout_s=stall_timeout_s).add_to(app)
    EventRoutes(asker, stall_timeout_s=stall_timeout_s).add_to(app)
    AgentRoutes(asker, places, body_limit=body_limit, stall_timeout_s=stall_timeout_s).add_to(app)
    HealthRoutes(bus).add_to(app)
    add_docs(app)
    _handle_errors(app)
    describe(
        app,
        taken=(lmos_rest.ChatRequest, openai.ChatCompletionRequest),
        given=(
            lmos_rest.ChatReply,
            openai.ChatCompletion,
            LmosError,
            OpenAIError,
            Problem,
            NotReady,
        ),
    )
    edge: ASGIApp = Edge(WholeSegments(app))
    if cors_origins:
        edge = CORSMiddleware(
            edge,
            allow_origins=cors_origins,
            allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("*",),
            expose_headers=_SHOWN,
        )
    return edge


def _handle_errors(app: FastAPI) -> None:
    async def of_mesh(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, MeshError)
        return _tell(request, fault_of(exc))

    async def of_validation(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        faults = [
            {"field": pointer(tuple(error["loc"][1:])), "description": description_of(error)}
            for error in exc.errors()
        ]
        said = f"the request cannot be used: {told_faults(faults)}"
        return _tell(request, fault_of(InvalidMessage(said, faults=faults)))

    async def of_http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        where = f"{request.method} {request.url.path}"
        headers = {key.lower(): value for key, value in (exc.headers or {}).items()}
        message = str(exc.detail)
        if exc.status_code == 404:
            message = f"there is nothing at {where}; see /docs"
        elif exc.status_code == 405:
            headers["allow"] = ", ".join(_methods_at(app, request))
            message = f"{where} is not possible; {headers['allow']} is"
        return _tell(request, http_fault(exc.status_code, message, headers))

    async def of_bug(request: Request, exc: Exception) -> Response:
        # The server logs it with its traceback.
        return _tell(request, http_fault(500, "this adapter failed; its log says how"))

    async def of_leaving(request: Request, exc: Exception) -> Response:
        return Response(status_code=400)  # which nobody reads any more

    app.add_exception_handler(MeshError, of_mesh)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(ClientDisconnect, of_leaving)
    app.add_exception_handler(Exception, of_bug)


def _methods_at(app: FastAPI, request: Request) -> list[str]:
    """The methods of all routes at a path; Starlette names those of the first only."""
    methods: set[str] = set()
    for route in app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)


def _tell(request: Request, fault: Fault) -> Response:
    path = request.url.path
    if fault.status >= 500 and fault.status != 501:  # which is as it should be
        logger.warning("%s: %s (%s)", fault.status, fault.code, request_id_of(request))
    reply = told(fault, surface_of(path))
    return Response(reply.body, reply.status, dict(reply.headers))
