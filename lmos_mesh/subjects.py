"""Subject names: build, parse, escape. Pure; `docs/subjects.md` is the contract they keep.

An id from outside is one token of a subject or key. What NATS would not take as one, and
anything that looks escaped already, is written `_x` + base32hex of its UTF-8 (lower case, no
padding), so that no two ids share a token and every token leads back to its id.
"""

import base64
import binascii
import re

_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")
_ESCAPED = "_x"

DISCONNECTS = "lmos.sys.disconnect"


def escape(name: str) -> str:
    """The token for an id. Injective; `unescape` is its inverse."""
    if _PLAIN.match(name) and not name.startswith(_ESCAPED):
        return name
    encoded = base64.b32hexencode(name.encode("utf-8", "surrogatepass")).decode("ascii")
    return _ESCAPED + encoded.rstrip("=").lower()


def unescape(token: str) -> str:
    """The id of a token. A token that nobody escaped is its own id."""
    if not token.startswith(_ESCAPED):
        return token
    encoded = token[len(_ESCAPED) :].upper()
    try:
        raw = base64.b32hexdecode(encoded + "=" * (-len(encoded) % 8))
        return raw.decode("utf-8", "surrogatepass")
    except (binascii.Error, UnicodeDecodeError):
        return token


def agent(tenant: str, agent: str, subset: str) -> str:
    """Everything one agent answers: subscribe it with the queue group `agent_queue`."""
    return f"lmos.{escape(tenant)}.agent.{escape(agent)}.{escape(subset)}.>"


def agent_invoke(tenant: str, agent: str, subset: str, action: str) -> str:
    """Where any instance of an agent performs an action."""
    return f"lmos.{escape(tenant)}.agent.{escape(agent)}.{escape(subset)}.invoke.{escape(action)}"


def agent_property(tenant: str, agent: str, subset: str, name: str, verb: str) -> str:
    """Where any instance of an agent lets a property be read (`read`) or written (`write`)."""
    of_agent = f"{escape(tenant)}.agent.{escape(agent)}.{escape(subset)}"
    return f"lmos.{of_agent}.property.{escape(name)}.{verb}"


AGENT_QUEUE = "lmos-agent"


def service_queue(service: str) -> str:
    """The queue group that the replicas of a service share."""
    return f"lmos-{service}"


def instance(tenant: str, instance: str, operation: str) -> str:
    """What one process answers: `cancel`, `drain` or `status`."""
    return f"lmos.{escape(tenant)}.instance.{escape(instance)}.{operation}"


def instance_in_any_tenant(instance: str) -> str:
    """Everything that one process answers as itself, whoever's request it is about."""
    return f"lmos.*.instance.{escape(instance)}.*"


def runner(tenant: str, instance: str) -> str:
    """Everything that a process which starts and stops agents answers as itself."""
    return f"lmos.{escape(tenant)}.runner.{escape(instance)}.*"


def tenant_of(subject: str) -> str:
    """The tenant of a subject of the mesh; its second token as an id."""
    _, _, rest = subject.partition(".")
    return unescape(rest.partition(".")[0])


def inbox(tenant: str, instance: str) -> str:
    """The prefix of the replies to one process; it ends in a dot."""
    return f"_INBOX.{escape(tenant)}.{escape(instance)}."


def answerer_of(subject: str) -> str:
    """Who answers on a subject, in words: `agent 'billing'`, `the runtime`."""
    tokens = subject.split(".")
    if len(tokens) > 3 and tokens[0] == "lmos":
        named = tokens[2] in ("agent", "instance")
        return f"{tokens[2]} {unescape(tokens[3])!r}" if named else f"the {tokens[2]}"
    return f"whoever answers on {subject!r}"


def agent_of(subject: str) -> str:
    """The agent that answers on a subject; empty if none does."""
    tokens = subject.split(".", 4)
    is_agent = len(tokens) > 4 and tokens[0] == "lmos" and tokens[2] == "agent"
    return unescape(tokens[3]) if is_agent else ""


def instance_of_inbox(reply: str) -> str | None:
    """Whose inbox a reply subject is; None if it is no process's of the mesh."""
    tokens = reply.split(".")
    return unescape(tokens[2]) if len(tokens) == 4 and tokens[0] == "_INBOX" else None


def connection_name(tenant: str, instance: str) -> str:
    """What a connection calls itself, so that its disconnect names who is lost."""
    return f"lmos/{escape(tenant)}/{escape(instance)}"


def instance_of_connection(name: str) -> tuple[str, str] | None:
    """(tenant, instance) from a connection's name, or None for somebody else's."""
    kind, _, rest = name.partition("/")
    tenant, _, instance = rest.partition("/")
    if kind != "lmos" or not tenant or not instance or "/" in instance:
        return None
    return unescape(tenant), unescape(instance)


def key(*ids: str) -> str:
    """A key-value key of several ids."""
    return ".".join(escape(one) for one in ids)


def ids_of(key: str) -> tuple[str, ...]:
    """The ids of a key."""
    return tuple(unescape(token) for token in key.split("."))


def changed(tenant: str, kind: str, *ids: str) -> str:
    """The change feed of one entry; `*` and `>` are taken as wildcards."""
    tokens = [one if one in ("*", ">") else escape(one) for one in (tenant, *ids)]
    return f"lmos.{tokens[0]}.changed.{kind}.{'.'.join(tokens[1:])}"


def event(tenant: str, thing: str, name: str) -> str:
    """Where an event of a Thing is published."""
    return f"lmos.{escape(tenant)}.event.{escape(thing)}.{escape(name)}"


def audit(tenant: str, kind: str) -> str:
    """Where it is written down who did what."""
    return f"lmos.{escape(tenant)}.audit.{escape(kind)}"
