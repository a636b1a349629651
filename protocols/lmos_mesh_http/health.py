"""Whether this process lives, and whether the mesh behind it answers."""

import asyncio
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from lmos_mesh.bus import Bus
from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.errors import MeshError, NotFound
from lmos_mesh.messages import (
    FIND_THINGS,
    GET_CONVERSATION,
    ROUTER_STATUS,
    FindThings,
    GetConversation,
    RouterStatus,
)
from lmos_mesh_http.errors import PROBLEM, Problem
from lmos_mesh_http.openapi import json_reply

_TAGS: list[Any] = ["Health"]
_PATIENCE_S = 1.0

# One cheap question to each; it need not be answered with yes.
_QUESTIONS: dict[str, tuple[Endpoint[Any, Any], Message]] = {
    "registry": (FIND_THINGS, FindThings(name="", limit=1)),
    "router": (ROUTER_STATUS, RouterStatus()),
    "runtime": (GET_CONVERSATION, GetConversation(conversation="readyz")),
}


class Lives(BaseModel):
    """This process lives."""

    status: str = "ok"


class Ready(BaseModel):
    """What was looked at, and what was found: `ok`, or what is wrong."""

    status: str
    checks: dict[str, str]


class NotReady(Problem):
    """What is missing."""

    checks: dict[str, str]


class HealthRoutes:
    """Answers probes."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def add_to(self, app: FastAPI) -> None:
        """Add both paths."""
        app.add_api_route(
            "/healthz",
            self.healthz,
            methods=["GET"],
            tags=_TAGS,
            summary="Does this process live?",
            response_model=Lives,
        )
        app.add_api_route(
            "/readyz",
            self.readyz,
            methods=["GET"],
            tags=_TAGS,
            summary="Does the mesh answer?",
            response_model=Ready,
            responses={
                503: {
                    "description": "Something is missing.",
                    "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/NotReady"}}},
                }
            },
        )

    async def healthz(self, request: Request) -> Response:
        """Always yes, also when the bus is lost: it is waited for, and restarting does not help."""
        return json_reply(Lives())

    async def readyz(self, request: Request) -> Response:
        """Yes if the bus is connected and registry, router and runtime answer."""
        checks = await self._checks()
        missing = [what for what, found in checks.items() if found != "ok"]
        if not missing:
            return json_reply(Ready(status="ready", checks=checks))
        problem = {
            "type": "about:blank",
            "title": "Not ready",
            "status": 503,
            "detail": "; ".join(f"{what}: {checks[what]}" for what in missing),
            "checks": checks,
        }
        return Response(to_json(problem), 503, {"retry-after": "1"}, media_type=PROBLEM)

    async def _checks(self) -> dict[str, str]:
        if not self._bus.transport.connected:
            return {"bus": "not connected", **dict.fromkeys(_QUESTIONS, "not asked: no bus")}
        checks = {"bus": "ok", **dict.fromkeys(_QUESTIONS, "")}

        async def check(what: str) -> None:
            endpoint, question = _QUESTIONS[what]
            try:
                await self._bus.call(endpoint, question, timeout_s=_PATIENCE_S)
            except NotFound:
                pass
            except MeshError as error:
                checks[what] = str(error)
                return
            checks[what] = "ok"

        async with asyncio.TaskGroup() as tasks:
            for what in _QUESTIONS:
                tasks.create_task(check(what))
        return checks
