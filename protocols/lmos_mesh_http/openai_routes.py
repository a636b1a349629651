"""The paths that OpenAI clients use."""

import secrets
import time
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path
from starlette.requests import Request
from starlette.responses import Response

from lmos_mesh import codec
from lmos_mesh.errors import AgentNotFound
from lmos_mesh.messages import (
    DEFAULT_CHANNEL,
    FIND_THINGS,
    GET_THING,
    Answer,
    FindThings,
    GetThing,
)
from lmos_mesh.things import DEFAULT_SUBSET
from lmos_mesh_http import sse
from lmos_mesh_http.asking import Asker
from lmos_mesh_http.bodies import read_json
from lmos_mesh_http.errors import OPENAI_BASE, OpenAIError
from lmos_mesh_http.openai import (
    AUTO,
    ChatChunks,
    ChatCompletion,
    ChatCompletionRequest,
    Model,
    ModelList,
    completion_body,
    converse_of,
    model_of,
    models_of,
)
from lmos_mesh_http.openapi import errors, json_reply, parameter, request_body, schema_of
from lmos_mesh_http.parameters import LONGEST, PATTERN, header
from lmos_mesh_http.replies import AnswerAsItComes, WholeAnswer

_TAGS: list[Any] = ["OpenAI"]
_RULES: dict[str, Any] = {"min_length": 1, "max_length": LONGEST, "pattern": PATTERN}

TENANT = "lmos-tenant"
CHANNEL = "lmos-channel"
SUBSET = "x-subset"
CONVERSATION = "x-conversation-id"
TURN = "x-turn-id"

TenantHeader = Annotated[str | None, Header(alias=TENANT, **_RULES)]
SubsetHeader = Annotated[str, Header(alias=SUBSET, **_RULES)]

_COMPLETIONS_DOCUMENT: dict[str, Any] = {
    "parameters": [
        parameter(TENANT, "header", "Whose mesh; this adapter's own tenant if not given."),
        parameter(CHANNEL, "header", "The way in; `web` if not given."),
        parameter(SUBSET, "header", "Release line; `stable` if not given."),
        parameter(
            CONVERSATION,
            "header",
            "Have the mesh keep this conversation: only the last message of the user is new.",
        ),
        parameter(TURN, "header", "Id of this turn in it; the same again gives the same answer."),
    ],
    "requestBody": request_body(ChatCompletionRequest),
}
_COMPLETIONS_REPLY: dict[str, Any] = {
    "description": "The answer; with `stream` as `chat.completion.chunk` events, then `[DONE]`. "
    'What fails after the first word is an event `{"error": …}`, without `[DONE]`.',
    "content": {
        "application/json": {"schema": schema_of(ChatCompletion)},
        sse.MEDIA_TYPE: {"schema": {"type": "string"}},
    },
}


class OpenAIRoutes:
    """Answers on the paths of OpenAI clients."""

    def __init__(self, asker: Asker, *, body_limit: int, stall_timeout_s: float) -> None:
        self._asker = asker
        self._body_limit = body_limit
        self._stall_timeout_s = stall_timeout_s

    def add_to(self, app: FastAPI) -> None:
        """Add all paths."""
        app.add_api_route(
            f"{OPENAI_BASE}/chat/completions",
            self.complete,
            methods=["POST"],
            tags=_TAGS,
            summary="Continue a chat",
            response_model=None,
            responses={200: _COMPLETIONS_REPLY}
            | errors(OpenAIError, 400, 404, 408, 409, 413, 415, 500, 502, 503, 504, 508),
            openapi_extra=_COMPLETIONS_DOCUMENT,
        )
        app.add_api_route(
            f"{OPENAI_BASE}/models",
            self.models,
            methods=["GET"],
            tags=_TAGS,
            summary="What can be named as model",
            response_model=ModelList,
            responses=errors(OpenAIError, 400, 500, 503, 504),
        )
        app.add_api_route(
            OPENAI_BASE + "/models/{model}",
            self.model,
            methods=["GET"],
            tags=_TAGS,
            summary="One model",
            response_model=Model,
            responses=errors(OpenAIError, 400, 404, 500, 503, 504),
        )

    async def complete(self, request: Request) -> Response:
        """Answered by the agent that `model` names, or for `auto` by the one that can handle it.

        The client keeps the history in `messages`, and nothing is stored, unless
        `X-Conversation-Id` is sent.
        """
        # The busiest path: FastAPI would take as long again to hand over these six values.
        headers = request.headers
        tenant = header(headers, TENANT, self._asker.bus.tenant)
        channel = header(headers, CHANNEL, DEFAULT_CHANNEL)
        subset = header(headers, SUBSET, "") or None
        conversation = header(headers, CONVERSATION, "") or None
        turn = header(headers, TURN, "") or None
        body = await read_json(request, ChatCompletionRequest, limit=self._body_limit)
        question = converse_of(
            body,
            channel=channel,
            subset=subset,
            conversation=conversation,
            turn=turn if conversation else None,
        )
        id = f"chatcmpl-{secrets.token_hex(12)}"
        created = int(time.time())
        opened = self._asker.conversing(request, tenant, question)
        if body.stream:
            options = body.stream_options
            return AnswerAsItComes(
                opened,
                request,
                events=ChatChunks(
                    id=id,
                    created=created,
                    model=body.model,
                    include_usage=bool(options and options.include_usage),
                ),
                stall_timeout_s=self._stall_timeout_s,
            )
        return WholeAnswer(
            opened,
            body_of=lambda answer: completion_body(
                codec.validate(Answer, answer), id=id, created=created, model=body.model
            ),
        )

    async def models(
        self,
        request: Request,
        tenant: TenantHeader = None,
        subset: SubsetHeader = DEFAULT_SUBSET,
    ) -> Response:
        """`auto` and every live agent."""
        found = await self._asker.call(
            request,
            tenant or self._asker.bus.tenant,
            FIND_THINGS,
            FindThings(kind="agent", subset=subset, origin=""),
        )
        return json_reply(models_of(found.things))

    async def model(
        self,
        request: Request,
        model: Annotated[str, Path(**_RULES)],
        tenant: TenantHeader = None,
        subset: SubsetHeader = DEFAULT_SUBSET,
    ) -> Response:
        """`auto`, or a live agent by name."""
        if model == AUTO:
            return json_reply(Model(id=AUTO))
        tenant = tenant or self._asker.bus.tenant
        thing = await self._asker.call(
            request, tenant, GET_THING, GetThing(name=model, subset=subset)
        )
        if not thing.live or thing.origin or thing.kind != "agent":
            raise AgentNotFound(
                f"no agent {model!r} is running in {tenant!r}", hint="see GET /v1/models"
            )
        return json_reply(model_of(thing))
