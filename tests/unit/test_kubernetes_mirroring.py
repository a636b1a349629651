"""What the mirror decides, on clusters and stores that change at every moment."""

import copy
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmos_mesh.resource_faults import read_resource
from lmos_mesh.resource_index import Kept, ResourceKey, shown
from lmos_mesh.resources import Agent, Channel, ChannelRouting
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import ThingKey
from lmos_mesh_operator.kubernetes import mirroring
from lmos_mesh_operator.kubernetes.mirroring import (
    Apply,
    Drop,
    Forget,
    Place,
    Post,
    Put,
    Refuse,
    Seen,
    mirror,
    show,
)
from lmos_mesh_operator.kubernetes.showing import object_of, shown_agent
from lmos_mesh_operator.kubernetes.statuses import condition

KEY = ResourceKey("Channel", "default", "web")
PLACE = Place(store="s1", tenant="demo", now="2026-01-01T00:00:00Z")
_STEPS = 14


def channel(version: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Channel",
        "metadata": {"name": "web", "namespace": "default", "labels": {"channel": "web", **labels}},
        "spec": {"requiredCapabilities": [{"id": "view-bill", "version": version}]},
    }


def resource(body: dict[str, Any]) -> Channel:
    read, faults = read_resource(body)
    assert isinstance(read, Channel), faults
    return read


@dataclass
class World:
    """A cluster and a store, each with its own idea of one Channel, and the operator between."""

    body: dict[str, Any] | None = None
    kept: Kept | None = None
    place: Place = PLACE
    writes: int = 0
    revision: int = 0
    uids: int = 0
    agreed: tuple[str, str] | None = None
    pruned: bool = False
    log: list[str] = field(default_factory=list[str])

    # -- what people do --

    def kubectl_apply(self, version: str) -> None:
        wanted = channel(version)
        if self.body is None:
            self.uids += 1
            self._set({**wanted, "metadata": {**wanted["metadata"], "uid": str(self.uids)}}, 1)
        elif not self.body["metadata"].get("deletionTimestamp"):
            self._set({**self.body, "spec": wanted["spec"]}, self._generation() + 1)

    def kubectl_delete(self) -> None:
        if self.body is None:
            return
        if self.body["metadata"].get("finalizers"):
            metadata = {**self.body["metadata"], "deletionTimestamp": "now"}
            self._set({**self.body, "metadata": metadata}, self._generation())
        else:
            self.body = None

    def bus_apply(self, version: str) -> None:
        self.keep(resource(channel(version, tenant="demo")))

    def bus_delete(self) -> None:
        self.kept = None

    def status_changes(self, message: str) -> None:
        if self.kept is not None:
            told = {"message": message, "resolveStatus": "RESOLVED", "observedGeneration": 1}
            read = Channel.model_validate({**shown(self.kept.resource), "status": told})
            self.revision += 1
            self.kept = replace(self.kept, resource=read, revision=self.revision)

    def store_is_lost(self) -> None:
        self.kept = None
        self.agreed = None
        self.place = replace(self.place, store=self.place.store + "x")

    # -- what the operator does --

    def step(self) -> bool:
        """Whether there was something to do."""
        seen = Seen(key=KEY, body=self.body) if self.body is not None else None
        at = (
            seen.said if seen else "",
            mirroring.said_by(self.kept.resource) if self.kept else "",
        )
        done = mirror(seen, self.kept, self.place, agreed=self.agreed == at)
        self.log.append(type(done).__name__)
        match done:
            case None:
                return False
            case Post(body=body):
                self.uids += 1
                self._set({**body, "metadata": {**body["metadata"], "uid": str(self.uids)}}, 1)
                self._settle(done)
            case Put(body=body, status=True):
                assert self.body is not None
                self._set({**self.body, "status": body["status"]}, self._generation())
            case Put(body=body):
                assert self.body is not None
                assert body["metadata"]["uid"] == self.body["metadata"]["uid"]
                changed = body["spec"] != self.body["spec"]
                self._set({**body, "status": self.body.get("status")}, self._generation() + changed)
                self._settle(done)
            case Drop(seen=gone):
                assert gone.body["metadata"]["uid"] == (self.body or {})["metadata"]["uid"]
                self.kubectl_delete()
            case Apply(resource=wanted, tenant=tenant):
                assert tenant == "demo"
                filled = mirroring.filled(resource(wanted), "demo")
                assert isinstance(filled, Channel)
                self.keep(filled)
                assert seen is not None
                assert self.kept is not None
                self.agreed = seen.said, mirroring.said_by(self.kept.resource)
            case Forget():
                self.kept = None
            case Refuse(message=message):
                raise AssertionError(message)
        self.writes += 1
        return True

    def settle(self) -> None:
        """Work until there is nothing more to do."""
        for _ in range(_STEPS):
            if not self.step():
                return
        raise AssertionError(f"never done: {self.log[-_STEPS:]}")

    def versions(self) -> tuple[str | None, str | None]:
        """What either side requires."""
        here = self.body["spec"]["requiredCapabilities"][0]["version"] if self.body else None
        kept = self.kept.resource if self.kept is not None else None
        there = kept.spec.required_capabilities[0].version if isinstance(kept, Channel) else None
        return here, there

    def _settle(self, done: Post | Put) -> None:
        if self.body is not None:
            also = mirroring.settled(done, Seen(key=KEY, body=self.body))
            if also is not None:
                self.writes += 1
                self._set(also.body, self._generation())

    def _generation(self) -> int:
        assert self.body is not None
        return self.body["metadata"]["generation"]

    def _set(self, body: dict[str, Any], generation: int) -> None:
        body = json.loads(json.dumps(body))
        body["metadata"]["generation"] = generation
        if self.pruned:
            body["spec"].pop("fallbackAgent", None)
        metadata = body["metadata"]
        ended = metadata.get("deletionTimestamp") and not metadata.get("finalizers")
        self.body = None if ended else body

    def keep(self, one: Channel) -> None:
        self.revision += 1
        known = self.kept.resource if self.kept is not None else None
        status = known.status if isinstance(known, Channel) else None
        metadata = one.metadata.model_copy(update={"generation": self.revision})
        kept = one.model_copy(update={"metadata": metadata, "status": status})
        self.kept = Kept(key=KEY, resource=kept, revision=self.revision)


VERSIONS = st.sampled_from(["^1.0", "^2.0", "^3.0"])
DEEDS = st.one_of(
    st.tuples(st.just("kubectl_apply"), VERSIONS),
    st.tuples(st.just("bus_apply"), VERSIONS),
    st.tuples(st.just("status_changes"), st.sampled_from(["one", "two"])),
    st.just(("kubectl_delete",)),
    st.just(("bus_delete",)),
    st.just(("store_is_lost",)),
    st.just(("step",)),
    st.just(("settle",)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(DEEDS, max_size=14))
def test_whatever_people_do_both_sides_say_the_same_in_the_end_and_nothing_is_written_then(
    deeds: list[tuple[str, ...]],
):
    world = World()
    for name, *given_with in deeds:
        getattr(world, name)(*given_with)
    world.settle()

    here, there = world.versions()
    assert here == there
    before = world.writes
    world.settle()
    assert world.writes == before


@settings(max_examples=200, deadline=None)
@given(VERSIONS, VERSIONS, VERSIONS)
def test_where_both_have_changed_the_cluster_counts(first: str, here: str, there: str):
    world = World()
    world.kubectl_apply(first)
    world.settle()
    world.bus_apply(there)
    world.kubectl_apply(here)
    world.settle()

    # Whoever writes what is there has changed nothing.
    assert world.versions()[0] == (there if here == first else here)


@settings(max_examples=100, deadline=None)
@given(VERSIONS, st.integers(0, 6))
def test_a_deletion_is_heard_whenever_it_comes(version: str, steps: int):
    world = World()
    world.kubectl_apply(version)
    world.settle()
    world.bus_delete()
    for _ in range(steps):
        world.step()
    world.settle()
    assert world.versions() == (None, None)

    world.bus_apply(version)
    world.settle()
    world.kubectl_delete()
    for _ in range(steps):
        world.step()
    world.settle()
    assert world.versions() == (None, None)


def test_an_object_that_was_never_taken_takes_nothing_along():
    world = World()
    world.bus_apply("^1.0")
    body = channel("^2.0")
    body["metadata"] |= {
        "uid": "1",
        "generation": 1,
        "finalizers": [mirroring.FINALIZER],
        "deletionTimestamp": "now",
    }
    world.body = body
    world.step()

    assert world.body is None
    assert world.kept is not None


def test_a_store_that_is_lost_is_filled_again_from_the_cluster():
    world = World()
    world.kubectl_apply("^1.0")
    world.settle()
    world.store_is_lost()
    world.settle()

    assert world.versions() == ("^1.0", "^1.0")


def test_an_older_definition_does_not_undo_what_the_mesh_says():
    world = World(pruned=True)
    wanted = channel("^1.0", tenant="demo")
    wanted["spec"]["fallbackAgent"] = "concierge"
    world.keep(resource(wanted))
    world.settle()
    before = world.writes
    world.settle()

    assert world.writes == before
    kept = world.kept.resource if world.kept is not None else None
    assert isinstance(kept, Channel)
    assert kept.spec.fallback_agent == "concierge"


def test_what_cannot_be_read_is_refused_and_the_good_one_stays():
    body = channel("^1.0")
    body["spec"]["requiredCapabilities"] = [{"id": "view-bill", "version": "one"}]
    body["metadata"] |= {"uid": "1", "generation": 2}
    kept = Kept(key=KEY, resource=resource(channel("^1.0", tenant="demo")), revision=1)

    told = mirror(Seen(key=KEY, body=body), kept, PLACE)
    assert isinstance(told, Put)
    assert told.status
    accepted = condition(told.body["status"], "Accepted")
    assert accepted is not None
    assert accepted["status"] == "False"
    assert "/spec/requiredCapabilities/0/version" in accepted["message"]
    # Told once; afterwards it only is an event, which its reader may have heard already.
    assert isinstance(mirror(Seen(key=KEY, body=told.body), kept, PLACE), Refuse)


def test_generations_are_those_of_the_cluster():
    world = World()
    world.kubectl_apply("^1.0")
    world.settle()
    world.kubectl_apply("^2.0")
    world.settle()
    world.status_changes("fine")
    kept = world.kept
    assert kept is not None
    assert isinstance(kept.resource, Channel)
    assert kept.resource.status is not None
    behind = kept.resource.status.model_copy(
        update={"observed_generation": kept.resource.metadata.generation - 1}
    )
    world.kept = replace(kept, resource=kept.resource.model_copy(update={"status": behind}))
    world.settle()
    assert world.body is not None
    assert world.body["metadata"]["generation"] == 2
    assert world.body["status"]["observedGeneration"] == 1


def test_a_routing_belongs_to_the_object_of_its_channel():
    routing = ChannelRouting.model_validate(
        {**channel("^1.0"), "kind": "ChannelRouting", "spec": {"capabilityGroups": []}}
    )
    key = ResourceKey("ChannelRouting", "default", "web")
    kept = Kept(key=key, resource=routing, revision=1)
    owner = Seen(key=KEY, body={"metadata": {"name": "web", "uid": "u1"}})

    assert mirroring.routing_shown(kept, None) is None
    wanted = mirroring.routing_shown(kept, owner)
    made = show(None, wanted, PLACE)
    assert isinstance(made, Post)
    assert made.body["metadata"]["ownerReferences"][0]["uid"] == "u1"
    seen = Seen(key=key, body=made.body)
    assert show(seen, wanted, PLACE) is None

    edited = copy.deepcopy(made.body)
    edited["metadata"]["labels"]["channel"] = "other"
    assert isinstance(show(Seen(key=key, body=edited), wanted, PLACE), Put)
    moved = mirroring.routing_shown(kept, Seen(key=KEY, body={"metadata": {"uid": "u2"}}))
    assert isinstance(show(seen, moved, PLACE), Put)
    assert isinstance(show(seen, None, PLACE), Drop)


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40
)


@settings(max_examples=300, deadline=None)
@given(NAMES, NAMES, NAMES)
def test_every_agent_of_the_mesh_has_a_name_in_the_cluster(tenant: str, name: str, subset: str):
    key = ThingKey(tenant, name, subset)
    made = object_of(key, "default")

    assert len(made.name) <= 253
    for part in made.name.split("."):
        assert part
        assert set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert part[0] != "-"
        assert part[-1] != "-"


@settings(max_examples=300, deadline=None)
@given(st.tuples(NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES))
def test_no_two_agents_have_the_same_name_there(
    one: tuple[str, str, str], other: tuple[str, str, str]
):
    first, second = (object_of(ThingKey(*key), "n") for key in (one, other))
    assert (first == second) == (one == other)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (ThingKey("demo", "billing", "stable"), "billing.demo"),
        (ThingKey("demo", "billing", "canary"), "billing.canary.demo"),
    ],
)
def test_agents_are_called_by_their_names(key: ThingKey, name: str):
    thing = thing_from({"name": key.name, "tenant": key.tenant, "subset": key.subset})
    wanted = shown_agent(key, thing, 2, "home")

    assert wanted.resource.metadata.name == name
    assert isinstance(wanted.resource, Agent)
    assert wanted.resource.status is not None
    assert wanted.resource.status.instances == 2
    made = show(None, wanted, PLACE)
    assert isinstance(made, Post)
    assert Seen(key=object_of(key, "home"), body=made.body).is_of_mesh


@pytest.mark.parametrize(
    ("labels", "supported", "owner"),
    [
        ({}, [], "shared"),
        ({}, ["acme"], "acme"),
        ({}, ["acme", "globex"], "shared"),
        ({"tenant": "acme"}, [], "acme"),
        ({"tenant": "acme"}, ["globex"], "acme"),
    ],
)
def test_an_agent_is_declared_by_its_tenant_or_for_all(
    labels: dict[str, str], supported: list[str], owner: str
):
    agent = Agent.model_validate(
        {
            "metadata": {"name": "billing", "labels": labels},
            "spec": {"supportedTenants": supported},
        }
    )

    assert mirroring.tenant_of(agent, "demo") == owner
    assert mirroring.filled(agent, "demo").tenant == owner
