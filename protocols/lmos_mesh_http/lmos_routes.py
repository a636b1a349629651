"""The paths of the LMOS runtime, under both of its bases."""

from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from lmos_mesh import codec
from lmos_mesh.errors import AgentNotFound
from lmos_mesh.messages import (
    CANCEL_TURN,
    FIND_THINGS,
    FORGET_CONVERSATION,
    GET_CONVERSATION,
    Answer,
    CancelTurn,
    FindThings,
    ForgetConversation,
    FoundThing,
    GetConversation,
)
from lmos_mesh.things import DEFAULT_SUBSET
from lmos_mesh_http import sse
from lmos_mesh_http.asking import Asker
from lmos_mesh_http.bodies import read_json
from lmos_mesh_http.errors import LMOS_BASES, LmosError
from lmos_mesh_http.lmos_operator import routed_agents
from lmos_mesh_http.lmos_operator_routes import Channels
from lmos_mesh_http.lmos_rest import (
    AddressedAgent,
    AgentList,
    ChatReply,
    ChatRequest,
    ListedAgent,
    LmosEvents,
    ShownConversation,
    addressed,
    converse_of,
    listed,
    reply_body,
    shown,
)
from lmos_mesh_http.openapi import errors, json_reply, parameter, request_body, schema_of
from lmos_mesh_http.parameters import LONGEST, PATTERN, header, name
from lmos_mesh_http.replies import AnswerAsItComes, WholeAnswer

_TAGS: list[Any] = ["LMOS runtime"]
_RULES: dict[str, Any] = {"min_length": 1, "max_length": LONGEST, "pattern": PATTERN}

Tenant = Annotated[str, Path(alias="tenantId", **_RULES)]
Conversation = Annotated[str, Path(alias="conversationId", **_RULES)]
Turn = Annotated[str, Path(alias="turnId", **_RULES)]
Channel = Annotated[str, Path(alias="channelId", **_RULES)]

_MESSAGE = "/{tenantId}/chat/{conversationId}/message"
_CONVERSATION = "/{tenantId}/chat/{conversationId}"
_TURN = "/{tenantId}/chat/{conversationId}/message/{turnId}"

_MESSAGE_DOCUMENT: dict[str, Any] = {
    "parameters": [
        parameter("tenantId", "path", "Whose mesh."),
        parameter("conversationId", "path", "Which conversation; the first message begins it."),
        parameter(
            "x-turn-id",
            "header",
            "Id of this turn. The same again gives the same answer.",
            required=True,
        ),
        parameter("x-subset", "header", "Release line; if not given, as rollouts have it."),
    ],
    "requestBody": request_body(ChatRequest),
}
_MESSAGE_REPLY: dict[str, Any] = {
    "description": "The answer. As events when the request accepts `text/event-stream`: "
    "`routed` (the decision), `delta` (`content`, some words), `status` (what the agent is "
    "doing), `restart` (the answer begins anew: forget the words so far), `end` (the whole answer "
    "and who gave it), or `error` (`errorCode`, `message`).",
    "content": {
        "application/json": {"schema": schema_of(ChatReply)},
        sse.MEDIA_TYPE: {"schema": {"type": "string"}},
    },
}


class LmosRoutes:
    """Answers on the paths of the LMOS runtime."""

    def __init__(
        self, asker: Asker, channels: Channels, *, body_limit: int, stall_timeout_s: float
    ) -> None:
        self._asker = asker
        self._channels = channels
        self._body_limit = body_limit
        self._stall_timeout_s = stall_timeout_s

    def add_to(self, app: FastAPI) -> None:
        """Add all paths, under both bases; only the first is described."""
        for base in LMOS_BASES:
            described: dict[str, Any] = {
                "tags": _TAGS,
                "include_in_schema": base == LMOS_BASES[0],
            }
            app.add_api_route(
                base + _MESSAGE,
                self.message,
                methods=["POST"],
                summary="Say something",
                response_model=None,
                responses={200: _MESSAGE_REPLY}
                | errors(LmosError, 400, 404, 408, 409, 413, 415, 500, 502, 503, 504, 508),
                openapi_extra=_MESSAGE_DOCUMENT,
                **described,
            )
            app.add_api_route(
                f"{base}/agents",
                self.agents,
                methods=["GET"],
                summary="The agents of a channel",
                response_model=AgentList,
                responses=errors(LmosError, 400, 404, 500, 503, 504),
                **described,
            )
            app.add_api_route(
                base + "/agents/{tenantId}/{channelId}",
                self.addressed_agents,
                methods=["GET"],
                summary="The agents of a channel and where they are reached",
                response_model=tuple[AddressedAgent, ...],
                responses=errors(LmosError, 400, 404, 500, 503, 504),
                **described,
            )
            app.add_api_route(
                base + _CONVERSATION,
                self.conversation,
                methods=["GET"],
                summary="A conversation",
                response_model=ShownConversation,
                responses=errors(LmosError, 400, 404, 500, 503, 504),
                **described,
            )
            app.add_api_route(
                base + _CONVERSATION,
                self.forget,
                methods=["DELETE"],
                summary="Erase a conversation",
                status_code=204,
                response_model=None,
                responses=errors(LmosError, 400, 404, 409, 500, 503, 504),
                **described,
            )
            app.add_api_route(
                base + _TURN,
                self.cancel,
                methods=["DELETE"],
                summary="Call off a running turn",
                status_code=204,
                response_model=None,
                responses=errors(LmosError, 400, 404, 409, 500, 503, 504),
                **described,
            )

    async def message(self, request: Request) -> Response:
        """The user's message is answered by the agent that can handle it.

        An answer that asks back, because no agent was convincing, is an answer like any other.
        """
        # The busiest path: FastAPI would take as long again to hand over these five values.
        tenant = name(request.path_params["tenantId"], "tenantId")
        conversation = name(request.path_params["conversationId"], "conversationId")
        headers = request.headers
        turn = name(headers.get("x-turn-id", ""), "x-turn-id")
        subset = header(headers, "x-subset", "") or None
        body = await read_json(request, ChatRequest, limit=self._body_limit)
        question = converse_of(body, conversation=conversation, turn=turn, subset=subset)
        opened = self._asker.conversing(request, tenant, question)
        if sse.MEDIA_TYPE in headers.get("accept", ""):
            return AnswerAsItComes(
                opened,
                request,
                events=LmosEvents(body),
                stall_timeout_s=self._stall_timeout_s,
            )
        return WholeAnswer(
            opened, body_of=lambda answer: reply_body(body, codec.validate(Answer, answer))
        )

    async def agents(
        self,
        request: Request,
        tenantId: Annotated[str, Query(**_RULES)],  # noqa: N803 - its name on the wire
        channelId: Annotated[str, Query(**_RULES)],  # noqa: N803
        subset: Annotated[str, Query(**_RULES)] = DEFAULT_SUBSET,
    ) -> Response:
        """The live agents that serve a channel; of a closed one, those of its Routing."""
        found = await self._find(request, tenantId, channelId, subset)
        routed = self._routed(tenantId, channelId, subset, found)
        agents = tuple(listed(one) for one in found)
        if routed is not None:
            agents = tuple(ListedAgent(**_without_addresses(one)) for one in routed)
        return json_reply(AgentList(subset=subset, agents=agents))

    async def addressed_agents(
        self,
        request: Request,
        tenant: Tenant,
        channel: Channel,
        subset: Annotated[str, Header(alias="x-subset", **_RULES)] = DEFAULT_SUBSET,
    ) -> Response:
        """The live agents that serve a channel, with the subjects that invoke them."""
        found = await self._find(request, tenant, channel, subset)
        routed = self._routed(tenant, channel, subset, found)
        if routed is None:
            routed = tuple(addressed(one, tenant) for one in found)
        return json_reply(routed)

    def _routed(
        self, tenant: str, channel: str, subset: str, live: tuple[FoundThing, ...]
    ) -> tuple[AddressedAgent, ...] | None:
        """The agents of a closed channel; None for an open one.

        Raises:
            AgentNotFound: It has no Routing yet.
        """
        wiring = self._channels.wiring(tenant, channel, subset)
        if wiring is None:
            return None
        routing = self._channels.applied.routing(tenant, channel, subset)
        if routing is None or not wiring.resolved:
            raise AgentNotFound(f"{wiring} has never been resolved to a Routing")
        return routed_agents(routing, wiring, live)

    async def _find(
        self, request: Request, tenant: str, channel: str, subset: str
    ) -> tuple[FoundThing, ...]:
        question = FindThings(kind="agent", channel=channel, subset=subset, origin="")
        return (await self._asker.call(request, tenant, FIND_THINGS, question)).things

    async def conversation(
        self, request: Request, tenant: Tenant, conversation: Conversation
    ) -> Response:
        """What was said, oldest first."""
        found = await self._asker.call(
            request, tenant, GET_CONVERSATION, GetConversation(conversation=conversation)
        )
        return json_reply(shown(found))

    async def forget(
        self, request: Request, tenant: Tenant, conversation: Conversation
    ) -> Response:
        """Nothing of it is kept."""
        await self._asker.call(
            request, tenant, FORGET_CONVERSATION, ForgetConversation(conversation=conversation)
        )
        return Response(status_code=204)

    async def cancel(
        self, request: Request, tenant: Tenant, conversation: Conversation, turn: Turn
    ) -> Response:
        """Whoever waits for its answer is told so."""
        await self._asker.call(
            request, tenant, CANCEL_TURN, CancelTurn(conversation=conversation, turn=turn)
        )
        return Response(status_code=204)


def _without_addresses(agent: AddressedAgent) -> dict[str, Any]:
    return {name: value for name, value in dict(agent).items() if name != "addresses"}
