"""One responder on our bus: a typed echo, and streams of frames."""

from closed_loop import run
from serving import serve_until_told, server_options
from wire import ECHO, FRAMES, Sent, Wanted, Work
from work import frames

from lmos_mesh import subjects
from lmos_mesh.bus import Bus, new_instance, route
from lmos_mesh.calls import Call
from lmos_mesh.nats_transport import NatsTransport

TENANT = "demo"


async def echo(request: Work, call: Call) -> Work:
    """Give every message back as it came."""
    return request


async def send_frames(request: Wanted, call: Call) -> Sent:
    """Send as many frames as the request says."""
    for frame in frames(request.frames, request.bytes):
        await call.send("delta", frame.decode())
    return Sent(frames=request.frames)


async def serve(nats_url: str) -> None:
    """Serve until told to stop."""
    instance = new_instance("bench")
    async with (
        NatsTransport.connect(
            nats_url,
            name=subjects.connection_name(TENANT, instance),
            inbox=subjects.inbox(TENANT, instance),
        ) as transport,
        Bus(transport, tenant=TENANT, instance=instance) as bus,
    ):
        await bus.serve("bench", [route(ECHO, echo), route(FRAMES, send_frames)])
        await serve_until_told(["nats-py", "pydantic", "ormsgpack", "uvloop"])


def main() -> None:
    """Run the responder as this process."""
    options = server_options(__doc__ or "").parse_args()
    run(options.loop, serve(options.nats_url))


if __name__ == "__main__":
    main()
