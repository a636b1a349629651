"""A bare a2a-sdk server: JSON-RPC over uvicorn, an agent that streams a Task of ten chunks."""

import argparse
import socket

import uvicorn
from a2a.helpers.proto_helpers import new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from closed_loop import run
from serving import say_ready
from starlette.applications import Starlette
from work import answer_chunks


class Echo(AgentExecutor):
    """Repeats what was asked, one artifact in ten chunks."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer one message as a new task."""
        assert context.message is not None
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        chunks = answer_chunks(context.get_user_input())
        for index, chunk in enumerate(chunks):
            await updater.add_artifact(
                [new_text_part(chunk)],
                artifact_id="answer",
                append=index > 0,
                last_chunk=index == len(chunks) - 1,
            )
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Nothing here runs long enough to be cancelled."""
        raise NotImplementedError


def make_app(url: str) -> Starlette:
    """The card and the JSON-RPC endpoint."""
    card = AgentCard(
        name="echo",
        description="Repeats what it is asked.",
        version="1.0.0",
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")
        ],
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="echo", name="echo", description="Repeats.", tags=["echo"])],
    )
    handler = DefaultRequestHandler(
        agent_executor=Echo(), task_store=InMemoryTaskStore(), agent_card=card
    )
    return Starlette(routes=[*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/")])


class Server(uvicorn.Server):
    """Says READY once it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell whoever waits."""
        await super().startup(sockets=sockets)
        say_ready(["a2a-sdk", "uvicorn", "starlette", "uvloop"], port=self.config.port)


async def serve(port: int) -> None:
    """Serve until told to stop; uvicorn minds the signals."""
    app = make_app(f"http://127.0.0.1:{port}/")
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="warning", access_log=False, lifespan="off"
    )
    await Server(config).serve()


def main() -> None:
    """Run the server as this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    options = parser.parse_args()
    run(options.loop, serve(options.port))


if __name__ == "__main__":
    main()
