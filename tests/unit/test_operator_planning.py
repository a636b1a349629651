"""One change is followed by looks at the channels it could touch, and that is always enough."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmos_mesh.resource_index import ResourceIndex, ResourceKey, key_of, value_of
from lmos_mesh.resources import Agent, Channel, ChannelRouting, ChannelStatus, Resource
from lmos_mesh.things import Capability, Thing, ThingKey
from lmos_mesh_operator.planning import Planner
from lmos_mesh_operator.reconcile import (
    Action,
    DropRouting,
    PutRouting,
    PutStatus,
    key_of_routing,
    restored,
)

NOW = "2026-01-01T00:00:00.000Z"


class Mesh:
    """A store and an operator that does what is planned."""

    def __init__(self, **options: Any) -> None:
        self.index = ResourceIndex()
        self.planner = Planner(self.index, **options)
        self.revision = 0
        self.routings: list[ChannelRouting] = []

    def put(self, resource: Resource) -> set[ResourceKey]:
        self.revision += 1
        key = key_of(resource)
        self.index.apply(key.token, value_of(resource), self.revision)
        return self.planner.resource_changed(key)

    def drop(self, key: ResourceKey) -> set[ResourceKey]:
        self.revision += 1
        self.index.apply(key.token, None, self.revision)
        return self.planner.resource_changed(key)

    def serve(self, name: str, version: str = "1.0.0", **more: Any) -> set[ResourceKey]:
        one = thing(name, version, **more)
        return self.planner.thing_changed(ThingKey(one.tenant, one.name, one.subset), one, 1)

    def end(self, name: str, *, tenant: str = "acme", subset: str = "stable") -> set[ResourceKey]:
        key = ThingKey(tenant, name, subset)
        return self.planner.thing_changed(key, None, 0)

    def settle(self, due: set[ResourceKey]) -> list[Action]:
        """Do what is planned until nothing is."""
        done: list[Action] = []
        for _ in range(10):
            actions = self.planner.plan(due, now=NOW)
            if not actions:
                return done
            due = set()
            for action in actions:
                held = self.index.kept(action.key)
                assert action.expected == (held.revision if held else 0)
                match action:
                    case PutRouting(routing=routing):
                        self.routings.append(routing)
                        due |= self.put(routing)
                    case PutStatus(resource=resource):
                        due |= self.put(resource)
                    case DropRouting(key=key):
                        due |= self.drop(key)
            done += actions
        raise AssertionError("it never settles")

    def status(self, name: str = "web", namespace: str = "default") -> ChannelStatus:
        found = self.index.get(Channel, namespace, name)
        assert found is not None
        assert found.status is not None
        return found.status

    def routing(self, name: str = "web", namespace: str = "default") -> ChannelRouting | None:
        return self.index.get(ChannelRouting, namespace, name)

    def host(self) -> str:
        found = self.routing()
        assert found is not None
        return found.spec.capability_groups[0].capabilities[0].host

    def wired(self, name: str = "web") -> list[tuple[str, str]]:
        found = self.routing(name)
        groups = found.spec.capability_groups if found is not None else ()
        return [(g.name, one.provided_version) for g in groups for one in g.capabilities]


def thing(
    name: str,
    version: str = "1.0.0",
    *,
    tenant: str = "acme",
    subset: str = "stable",
    capability: str = "view-bill",
    **more: Any,
) -> Thing:
    offered = (Capability(id=capability, name=capability, version=version),)
    return Thing(name=name, tenant=tenant, subset=subset, capabilities=offered, **more)


def channel(
    name: str = "web", version: str = "^1.0", *, tenant: str = "acme", **spec: Any
) -> Channel:
    labels = {"tenant": tenant, "channel": "web"}
    return Channel.model_validate(
        {
            "metadata": {"name": name, "labels": labels, "generation": 1},
            "spec": {"requiredCapabilities": [{"id": "view-bill", "version": version}], **spec},
        }
    )


def declared(name: str, version: str = "1.0.0", *, owner: str = "", **spec: Any) -> Agent:
    told = {"supportedChannels": ["web"], **spec}
    labels = {"tenant": owner} if owner else {}
    return Agent.model_validate(
        {
            "metadata": {"name": name, "labels": labels},
            "spec": {"providedCapabilities": [{"name": "view-bill", "version": version}], **told},
        }
    )


def test_a_channel_is_wired_as_soon_as_an_agent_comes():
    mesh = Mesh()
    mesh.settle(mesh.put(channel()))
    unresolved = mesh.status()

    mesh.settle(mesh.serve("billing"))

    assert unresolved.resolve_status == "UNRESOLVED"
    assert "nobody answers here" in unresolved.message
    assert mesh.status().resolve_status == "RESOLVED"
    assert mesh.wired() == [("billing", "1.0.0")]
    kept = mesh.index.kept(ResourceKey("ChannelRouting", "default", "web"))
    assert kept is not None
    assert mesh.status().routing_revision == kept.revision


def test_what_cannot_be_resolved_any_more_keeps_its_last_routing():
    mesh = Mesh()
    mesh.serve("billing")
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.end("billing"))

    assert mesh.wired() == [("billing", "1.0.0")]
    assert mesh.status().resolve_status == "UNRESOLVED"
    assert "stays" in mesh.status().message


def test_a_dead_agent_that_is_still_registered_is_a_near_miss():
    mesh = Mesh()
    mesh.settle(mesh.put(channel()))

    one = thing("billing")
    mesh.settle(mesh.planner.thing_changed(ThingKey("acme", "billing", "stable"), one, 0))

    near = mesh.status().unresolved_required_capabilities[0].near
    assert [(miss.agent, miss.reason) for miss in near] == [
        ("billing", "no instance of it is live")
    ]


def test_a_higher_version_takes_over_and_gives_back_when_it_leaves():
    mesh = Mesh()
    mesh.serve("billing")
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.serve("billing-two", "1.4.0"))
    taken = mesh.wired()
    mesh.settle(mesh.end("billing-two"))

    assert (taken, mesh.wired()) == ([("billing-two", "1.4.0")], [("billing", "1.0.0")])


def test_nothing_is_written_twice():
    mesh = Mesh()
    mesh.serve("billing")
    mesh.settle(mesh.put(channel()))

    assert mesh.planner.plan(mesh.planner.everything(), now="2027-01-01T00:00:00.000Z") == []


def test_another_tenants_agent_is_nobody_here_and_a_shared_one_is():
    mesh = Mesh()
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.serve("theirs", tenant="other"))
    before = mesh.wired()
    mesh.settle(mesh.serve("not-ours", tenant="shared", supported_tenants=("other",)))
    refused = mesh.wired()
    mesh.settle(mesh.serve("ours", tenant="shared", supported_tenants=("acme",)))

    assert (before, refused, mesh.wired()) == ([], [], [("ours", "1.0.0")])
    found = mesh.routing()
    assert found is not None
    host = found.spec.capability_groups[0].capabilities[0].host
    assert host == "nats:lmos.shared.agent.ours.stable"


def test_an_own_agent_hides_a_shared_one_whatever_it_can_do():
    mesh = Mesh()
    mesh.serve("billing", tenant="shared", supported_tenants=("acme",))
    mesh.settle(mesh.put(channel()))
    shared = mesh.host()

    mesh.settle(mesh.serve("billing"))
    own = mesh.host()
    mesh.settle(mesh.end("billing"))
    again = mesh.host()
    mesh.settle(mesh.serve("billing", capability="pay-bill"))

    assert (shared, own, again) == (
        "nats:lmos.shared.agent.billing.stable",
        "nats:lmos.acme.agent.billing.stable",
        "nats:lmos.shared.agent.billing.stable",
    )
    assert mesh.status().resolve_status == "UNRESOLVED"


def test_a_declared_agent_is_wired_by_the_word_of_who_declared_it():
    mesh = Mesh()
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.put(declared("billing")))

    found = mesh.routing()
    assert found is not None
    host = found.spec.capability_groups[0].capabilities[0].host
    assert host == "billing.default.svc.cluster.local"


def test_a_declared_agent_without_channels_serves_none():
    mesh = Mesh()
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.put(declared("billing", supportedChannels=[])))

    near = mesh.status().unresolved_required_capabilities[0].near
    assert near[0].reason == "it does not serve channel 'web'"


def test_what_is_declared_of_a_registered_agent_only_narrows_it():
    mesh = Mesh()
    mesh.serve("billing", "1.2.0")
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.put(declared("billing", "9.0.0", supportedChannels=["ivr"])))
    narrowed = mesh.status().resolve_status
    mesh.settle(mesh.put(declared("billing", "9.0.0")))

    assert narrowed == "UNRESOLVED"
    assert mesh.wired() == [("billing", "1.2.0")]
    found = mesh.index.get(Agent, "default", "billing")
    assert found is not None
    assert found.status is not None
    assert found.status.live
    assert found.status.instances == 1


@pytest.mark.parametrize(
    "told",
    [
        {"supportedTenants": [], "supportedChannels": []},
        {"supportedTenants": ["other"]},
        {"supportedTenants": ["other", "acme"], "supportedChannels": []},
    ],
)
def test_what_another_tenant_declares_of_our_agent_changes_nothing_here(told: dict[str, Any]):
    mesh = Mesh()
    mesh.serve("billing", "1.2.0")
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.put(declared("billing", owner="other", **told)))

    assert mesh.status().resolve_status == "RESOLVED"
    assert mesh.wired() == [("billing", "1.2.0")]


def test_what_a_tenant_declares_for_anybody_is_for_its_own_channels_and_what_shared_does_for_all():
    mesh = Mesh()
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.put(declared("theirs", "1.9.0", owner="other")))
    before = mesh.wired()
    near = mesh.status().unresolved_required_capabilities[0].near
    mesh.settle(mesh.put(declared("ours", "1.1.0", owner="acme")))
    own = mesh.wired()
    mesh.settle(mesh.put(declared("for-all", "1.2.0", owner="shared")))

    assert (before, near) == ([], ())
    assert (own, mesh.wired()) == ([("ours", "1.1.0")], [("for-all", "1.2.0")])


def test_a_routing_bears_the_labels_that_its_channel_bears_now():
    mesh = Mesh()
    mesh.serve("billing")
    mesh.settle(mesh.put(channel()))
    told = mesh.index.get(Channel, "default", "web")
    assert told is not None
    labels = {**told.metadata.labels, "version": "2.0.0"}
    metadata = told.metadata.model_copy(update={"labels": labels})

    mesh.settle(mesh.put(told.model_copy(update={"metadata": metadata})))

    routing = mesh.routing()
    assert routing is not None
    assert routing.metadata.labels == labels


def test_the_routing_of_a_channel_that_is_gone_goes_too():
    mesh = Mesh()
    mesh.serve("billing")
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.drop(ResourceKey("Channel", "default", "web")))

    assert mesh.routing() is None


def test_a_routing_that_nobody_here_has_made_is_left_alone():
    mesh = Mesh()
    own = ChannelRouting.model_validate({"metadata": {"name": "web"}, "spec": {}})

    assert mesh.settle(mesh.put(own)) == []


def test_a_channel_that_was_given_away_takes_nobody_along():
    mesh = Mesh()
    mesh.serve("billing")
    mesh.settle(mesh.put(channel()))

    mesh.settle(mesh.put(channel(tenant="other")))

    assert mesh.routing() is None
    assert mesh.status().routing_revision == 0


def test_what_was_put_back_stays_until_it_is_released():
    mesh = Mesh()
    mesh.serve("billing")
    mesh.settle(mesh.put(channel()))
    first = mesh.routing()
    assert first is not None
    mesh.settle(mesh.serve("billing-two", "1.4.0"))
    one = mesh.index.get(Channel, "default", "web")
    assert one is not None

    pinned = mesh.status().model_copy(update={"pinned": True})
    mesh.put(one.model_copy(update={"status": pinned}))
    mesh.settle(mesh.put(restored(one, first, 2, now=NOW)))
    mesh.settle(mesh.serve("billing-three", "1.5.0"))
    while_pinned = mesh.wired()
    assert "put back" in mesh.status().message
    one = mesh.index.get(Channel, "default", "web")
    assert one is not None
    free = mesh.status().model_copy(update={"pinned": False})
    mesh.settle(mesh.put(one.model_copy(update={"status": free})))

    assert (while_pinned, mesh.wired()) == ([("billing", "1.0.0")], [("billing-three", "1.5.0")])


def test_a_channel_of_another_word_is_not_looked_at():
    mesh = Mesh()
    mesh.settle(mesh.put(channel()))

    assert mesh.serve("greeter", capability="greet") == set()
    assert mesh.serve("billing", tenant="other") == set()
    assert mesh.serve("billing") == {ResourceKey("Channel", "default", "web")}
    assert mesh.serve("billing") == set()


def test_the_coming_of_a_fallback_agent_is_noted():
    mesh = Mesh()
    mesh.serve("billing")
    mesh.settle(mesh.put(channel(fallbackAgent="help")))
    before = {one.type: one.status for one in mesh.status().conditions}

    mesh.settle(mesh.serve("help", capability="greet"))

    after = {one.type: one.status for one in mesh.status().conditions}
    assert (before["FallbackReady"], after["FallbackReady"]) == ("False", "True")


# -- whatever happens --

names = st.sampled_from(("a", "b", "c"))
versions = st.sampled_from(("0.9.0", "1.0.0", "1.5.0", "2.0.0"))
tenants = st.sampled_from(("acme", "other", "shared"))
steps = st.one_of(
    st.tuples(st.just("serve"), names, versions, tenants),
    st.tuples(st.just("end"), names, tenants),
    st.tuples(st.just("declare"), names, versions),
    st.tuples(st.just("undeclare"), names),
    st.tuples(st.just("channel"), names, st.sampled_from(("^1.0", "*", ">=1.5")), tenants),
    st.tuples(st.just("drop"), names),
)


def take(mesh: Mesh, step: Any) -> set[ResourceKey]:
    match step:
        case ("serve", name, version, tenant):
            return mesh.serve(name, version, tenant=tenant)
        case ("end", name, tenant):
            return mesh.end(name, tenant=tenant)
        case ("declare", name, version):
            return mesh.put(declared(name, version))
        case ("undeclare", name):
            return mesh.drop(ResourceKey("Agent", "default", name))
        case ("channel", name, version, tenant):
            return mesh.put(channel(name, version, tenant=tenant))
        case ("drop", name):
            return mesh.drop(ResourceKey("Channel", "default", name))
        case _:
            raise AssertionError(step)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=15))
def test_to_look_only_at_what_a_change_touches_leaves_nothing_undone(history: list[Any]):
    mesh = Mesh()
    for step in history:
        mesh.settle(take(mesh, step))

        assert mesh.planner.plan(mesh.planner.everything(), now=NOW) == []
    for routing in mesh.routings:
        # Whole, or it was never written.
        assert [len(group.capabilities) for group in routing.spec.capability_groups] == [1]
    for kept in mesh.index:
        if isinstance(kept.resource, Channel):
            active = mesh.index.kept(key_of_routing(kept.key))
            if active is not None:
                assert active.resource.tenant == kept.resource.tenant
