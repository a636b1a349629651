"""An agent hosted with Synadia's agent SDK, which answers in ten chunks."""

import nats
from closed_loop import run
from serving import serve_until_told, server_options
from synadia_ai.agent_service import AgentService, PromptStream
from synadia_ai.agents import Envelope
from work import answer_chunks


async def on_prompt(envelope: Envelope, stream: PromptStream) -> None:
    """Repeat what was asked, in chunks."""
    for chunk in answer_chunks(envelope.prompt):
        await stream.send(chunk)


async def serve(nats_url: str, at_a_time: int) -> None:
    """Serve until told to stop."""
    client = await nats.connect(nats_url, name="synadia/echo")
    service = AgentService(
        agent="echo",
        owner="bench",
        session_name="default",
        nc=client,
        max_concurrent_prompts=at_a_time,
    )
    service.on_prompt(on_prompt)
    await service.start()
    packages = ["synadia-ai-agent-service", "nats-py", "uvloop"]
    await serve_until_told(packages, at_a_time=at_a_time)
    await service.stop()
    await client.close()


def main() -> None:
    """Run the host as this process."""
    parser = server_options(__doc__ or "")
    parser.add_argument("--at-a-time", type=int, default=64, help="the SDK's own default is 1")
    options = parser.parse_args()
    run(options.loop, serve(options.nats_url, options.at_a_time))


if __name__ == "__main__":
    main()
