"""Things are found by what somebody means, with a router and its model as they are deployed."""

import json
from pathlib import Path
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.description import describe
from lmos_mesh.membership import Membership
from lmos_mesh.messages import FIND_THINGS, REGISTER, FindThings, Register
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import ThingKey
from lmos_mesh_registry.catalog import find
from lmos_mesh_registry.meaning import Meanings
from tests.integration.processes import Deployment, until

THINGS: dict[str, list[dict[str, Any]]] = {
    "billing": [
        {"id": "refund", "description": "Gives back money for what was paid by mistake."},
        {"id": "invoice", "description": "Shows what is owed.", "examples": ["my last invoice"]},
    ],
    "weather": [{"id": "forecast", "description": "Says whether it will rain tomorrow."}],
    "library": [{"id": "loan", "description": "Lends books and extends loans."}],
}
SOON_S = 20.0


def entered(tenant: str) -> Membership:
    membership = Membership()
    for revision, (name, capabilities) in enumerate(THINGS.items(), start=1):
        thing = thing_from({"name": name, "tenant": tenant, "capabilities": capabilities})
        value = json.dumps(describe(thing)).encode()
        membership.apply_entry(subjects.key(tenant, name, "stable"), value, revision)
    return membership


async def test_who_can_help_is_found_in_words_that_nobody_has_used(
    nats_url: str, tmp_path: Path, tenant: str
) -> None:
    deployment = Deployment(nats_url, tmp_path)
    membership = entered(tenant)
    try:
        async with deployment.client(tenant) as mesh:
            meanings = Meanings(mesh.bus, membership)
            meanings.start()
            assert await meanings.score(tenant, "someone who can reimburse me") is None
            assert "no router" in meanings.note

            await deployment.start("router").ready()

            async def embedded() -> bool:
                return not meanings.pending(tenant)[0]

            await until(embedded, within_s=SOON_S)
            for text, name in (
                ("someone who can reimburse me", "billing"),
                ("do I need an umbrella?", "weather"),
                ("I want to read a novel", "library"),
            ):
                scores = await meanings.score(tenant, text)
                assert scores is not None
                wanted = FindThings(text=text, live=None)
                found = find(membership, tenant, wanted, scores=scores)
                assert (found.matched, found.notes) == ("meaning", ())
                assert found.entries[0][0].key == ThingKey(tenant, name, "stable")
        deployment.check_stop()
    finally:
        deployment.stop()


async def test_the_registry_compares_words_until_a_router_tells_it_what_they_mean(
    nats_url: str, tmp_path: Path, tenant: str
) -> None:
    deployment = Deployment(nats_url, tmp_path)
    try:
        deployment.service("registry")
        async with deployment.client(tenant) as mesh:
            for name, capabilities in THINGS.items():
                record = {"name": name, "capabilities": capabilities}
                await mesh.bus.call(REGISTER, Register(thing=record), nobody_s=5)
            wanted = FindThings(text="someone who can reimburse my money", live=None)

            by_words = await mesh.bus.call(FIND_THINGS, wanted)
            assert by_words.matched == "words"
            assert any("no router" in note for note in by_words.notes)
            assert [one.name for one in by_words.things] == ["billing"]

            await deployment.start("router").ready()

            async def known() -> bool:
                told = await mesh.bus.call(FIND_THINGS, wanted)
                return told.matched == "meaning" and not told.notes

            await until(known, within_s=SOON_S)
            by_meaning = await mesh.bus.call(FIND_THINGS, wanted)
            first = by_meaning.things[0]
            assert first.name == "billing"
            assert first.score is not None
            assert 0.2 <= first.score <= 1
        deployment.check_stop()
    finally:
        deployment.stop()
