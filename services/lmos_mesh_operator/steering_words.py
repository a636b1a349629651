"""What is said of an agent that was told how to run. Pure."""

from collections.abc import Sequence

from lmos_mesh.messages import Instance, SteerAgent
from lmos_mesh.things import DEFAULT_SUBSET

_DONE = {
    "restart": ("restarted", "being restarted"),
    "drain": ("drained", "finishing what they are at"),
    "stop": ("stopped", "being stopped"),
    "start": ("started", "being started"),
}


def message(
    request: SteerAgent, before: int, after: int, touched: int, *, done: bool, also: Sequence[str]
) -> str:
    """What has been done, in words."""
    if request.action == "scale":
        scaled = "scaled" if done else "is being scaled"
        said = f"{scaled} from {before} to {after}" if touched else f"has {count(after)} already"
    elif not touched:
        said = f"has {count(before)} running already" if before else "is stopped already"
    else:
        said = f"{count(touched)} {'' if done else 'still '}{_DONE[request.action][not done]}"
        if request.action != "restart":
            said += f", {after} running"
    if touched and also:
        said += f"; the same processes serve {', '.join(also)}"
    return said


def count(instances: int) -> str:
    """So many instances."""
    return "1 instance" if instances == 1 else f"{instances} instances"


def by_themselves(instances: Sequence[Instance]) -> str:
    """Why an agent cannot be told anything."""
    if not instances:
        return "no process of this mesh serves it, and no `lmos run` has its file"
    listed = ", ".join(f"pid {one.pid} on {one.host}" for one in instances[:3])
    more = f" and {len(instances) - 3} more" if len(instances) > 3 else ""
    return f"no `lmos run` has started its {count(len(instances))} ({listed}{more})"


def named(request: SteerAgent) -> str:
    """Which agent is meant."""
    return f"agent {in_words(request.agent, request.subset)!r}"


def in_words(name: str, subset: str) -> str:
    """An agent; the subset goes without saying if it is the usual one."""
    return name if subset == DEFAULT_SUBSET else f"{name} ({subset})"
