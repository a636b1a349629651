"""`lmos agents scale`, `restart`, `drain`, `stop` and `start`: how many instances, and which."""

import time

from rich.text import Text

from lmos_mesh.bus import RESTART_S
from lmos_mesh.cli.connection import answering, asking, connected, run
from lmos_mesh.cli.resource_calls import seconds_of
from lmos_mesh.cli.screen import out, print_json
from lmos_mesh.errors import DeadlineExceeded, InstanceLost, Unavailable
from lmos_mesh.messages import STEER_AGENT, AgentSteered, SteerAgent
from lmos_mesh.things import DEFAULT_SUBSET
from lmos_mesh.watched_call import watched


def steer(
    name: str,
    action: str,
    *,
    subset: str,
    instances: int | None,
    instance: str,
    timeout: str,
    tenant: str | None,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Change how an agent runs, and say what has become of it."""
    request = SteerAgent.model_validate(
        {
            "agent": name,
            "subset": subset,
            "action": action,
            "instances": instances,
            "instance": instance,
        }
    )
    began = time.monotonic()
    timeout_s = seconds_of(timeout)
    steered = run(_steered(request, timeout_s=timeout_s, tenant=tenant, mesh=mesh))
    if as_json:
        print_json(steered.model_dump(mode="json"))
    else:
        out().print(shown(steered, took_s=time.monotonic() - began), soft_wrap=True)
    return 0 if steered.done else 1


async def _steered(
    request: SteerAgent, *, timeout_s: float, tenant: str | None, mesh: str | None
) -> AgentSteered:
    async with connected(mesh) as bus, answering("operator"):
        began = time.monotonic()
        try:
            return await watched(
                bus,
                STEER_AGENT,
                request,
                tenant=tenant,
                headers=asking(bus),
                timeout_s=timeout_s,
                nobody_s=RESTART_S,
            )
        except InstanceLost as exc:
            raise Unavailable(
                "the operator has ended before it said what became of it",
                hint="those who run the agent go on with it; `lmos agents` shows what runs",
            ) from exc
        except DeadlineExceeded as exc:
            raise DeadlineExceeded(
                f"nobody has said within {time.monotonic() - began:.0f} s what became of it",
                hint="`lmos agents` shows what runs",
            ) from exc


def shown(steered: AgentSteered, *, took_s: float) -> Text:
    """What has become of it, and who has done it."""
    mark = ("✓ ", "green") if steered.done else ("↻ ", "cyan")
    subset = "" if steered.subset == DEFAULT_SUBSET else f" ({steered.subset})"
    text = Text.assemble(
        mark,
        (f"{steered.agent}{subset}", "bold"),
        f" {steered.message}",
        (f"  {took_s:.1f} s", "dim"),
    )
    for one in steered.where:
        text.append(f"\n  {one}", "dim")
    return text
