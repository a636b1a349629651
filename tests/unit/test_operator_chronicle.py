"""What came to pass with a resource: read from the audit, whatever else is written there."""

import json

from lmos_mesh import audit, subjects
from lmos_mesh.bus import Bus
from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport
from lmos_mesh.resource_index import ResourceKey
from lmos_mesh_operator.chronicle import read_steps

WEB = ResourceKey("ChannelRouting", "default", "web")
TO_NEXT = ResourceKey("ChannelRollout", "default", "to-next")


async def test_of_many_records_the_latest_of_one_resource_are_told() -> None:
    async with Bus(MemoryTransport(MemoryBroker()), tenant="t", instance="o") as bus:
        stream = bus.transport.stream(audit.AUDIT)
        for number in range(1500):
            name = "web" if number % 2 else "ivr"
            record = {"at": number, "kind": "ChannelRouting", "namespace": "default", "name": name}
            record |= {"revision": number, "by": "o-1"}
            await stream.append(
                subjects.audit("t", "routing_activated"), json.dumps(record).encode()
            )
        await stream.append(subjects.audit("t", "routing_activated"), b"no record")

        steps, earlier = await read_steps(bus, "t", WEB, limit=3, kept={1499})

    assert [(one.revision, one.kept) for one in steps] == [
        (1499, True),
        (1497, False),
        (1495, False),
    ]
    assert earlier == 747


async def test_a_rollout_is_told_with_who_steered_it_and_why() -> None:
    async with Bus(MemoryTransport(MemoryBroker()), tenant="t", instance="o") as bus:
        stream = bus.transport.stream(audit.AUDIT)
        step = {"rollout": "default/to-next", "what": "stepped", "phase": "Progressing"}
        step |= {"at": 1.0, "canary_weight": 20, "message": "20 % on canary"}
        told = {**step, "at": 2.0, "what": "aborted", "phase": "Aborted", "canary_weight": 0}
        told |= {"asked_by": "ann@laptop (cli-1)", "reason": "it hurts"}
        other = {**step, "rollout": "other/to-next"}
        for record in (step, told, other):
            await stream.append(subjects.audit("t", "rollout"), json.dumps(record).encode())
        # Another tenant's of the same name.
        await stream.append(subjects.audit("u", "rollout"), json.dumps(step).encode())

        steps, earlier = await read_steps(bus, "t", TO_NEXT, limit=10)

    assert earlier == 0
    assert [(one.what, one.state, one.by, one.reason) for one in steps] == [
        ("aborted", "Aborted, 0 %", "ann@laptop (cli-1)", "it hurts"),
        ("stepped", "Progressing, 20 %", "", ""),
    ]


async def test_what_is_no_record_hides_none_that_is() -> None:
    async with Bus(MemoryTransport(MemoryBroker()), tenant="t", instance="o") as bus:
        stream = bus.transport.stream(audit.AUDIT)
        record = {"kind": "ChannelRouting", "namespace": "default", "name": "web", "at": 1.0}
        odd = ({"at": "soon"}, {"at": None}, {"at": 1e300}, {"at": -1}, {"revision": "newest"})
        for more in (*odd, {"revision": 7}):
            told = json.dumps({**record, **more}).encode()
            await stream.append(subjects.audit("t", "routing_activated"), told)
        nested = b'{"name": "web", "kind": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        await stream.append(subjects.audit("t", "routing_activated"), nested)

        steps, earlier = await read_steps(bus, "t", WEB, limit=10)

    assert ([one.revision for one in steps], earlier) == ([7], 0)
