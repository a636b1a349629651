"""What was fitted reaches every replica, and what cannot be used stops nobody."""

import logging
from collections.abc import AsyncGenerator

import pytest

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport
from lmos_mesh_router.fits import FITS, Fits
from lmos_mesh_router.fitting import Fit, FittedMethod
from lmos_mesh_router.ranking import DEFAULT_CALIBRATION, DEFAULT_GATE, Learned
from tests.router_fleets import fleet

METHOD = FittedMethod.of(DEFAULT_CALIBRATION["head"], DEFAULT_GATE["head"])


def fitted(threshold: float) -> Fit:
    warm = METHOD.model_copy(update={"temperature": 10 * threshold})
    return Fit(threshold=threshold, methods={"head": warm})


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def bus(broker: MemoryBroker) -> AsyncGenerator[Bus]:
    async with Bus(MemoryTransport(broker), tenant="t", instance="one") as one:
        yield one


async def following(bus: Bus, fingerprint: str = "e1") -> Fits:
    fits = Fits(bus, fingerprint)
    await fits.follow()
    return fits


async def test_every_replica_goes_by_what_was_fitted(broker: MemoryBroker, bus: Bus) -> None:
    first = await following(bus)
    async with Bus(MemoryTransport(broker), tenant="t", instance="two") as other:
        second = await following(other)

        await first.put("acme", "web", fitted(0.7))
        await other.transport.flush()

        assert first.of("acme", "web") == second.of("acme", "web") == fitted(0.7)
        assert second.threshold("acme", "web", 0.5) == 0.7
        assert second.threshold("acme", "ivr", 0.5) == 0.5
        assert second.of("other", "web") is None

        assert await second.forget("acme", "web")
        await bus.transport.flush()
        assert first.of("acme", "web") is None
        assert not await second.forget("acme", "web")


async def test_a_router_that_starts_later_knows_it_and_another_encoder_does_not(bus: Bus) -> None:
    await (await following(bus)).put("acme", "my channel.*", fitted(0.7))

    assert (await following(bus)).threshold("acme", "my channel.*", 0.5) == 0.7
    assert (await following(bus, "e2")).of("acme", "my channel.*") is None


async def test_what_is_known_is_shared_and_its_numbers_are_the_channels(bus: Bus) -> None:
    fits = await following(bus)
    learned = Learned.of(fleet(2))
    assert fits.learned("acme", "web", learned) is learned

    await fits.put("acme", "web", fitted(0.7))
    applied = fits.learned("acme", "web", learned)

    assert applied.matrix is learned.matrix
    assert applied.calibration["head"].temperature == 7
    assert applied.calibration["instant"] == learned.calibration["instant"]
    assert fits.learned("acme", "web", learned) is applied
    newer = learned.changed_to(fleet(3))
    assert fits.learned("acme", "web", newer).matrix is newer.matrix
    await fits.put("acme", "web", fitted(0.8))
    assert fits.learned("acme", "web", newer).calibration["head"].temperature == 8


async def test_what_cannot_be_used_is_said_once_and_stops_nobody(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    fits = await following(bus)
    await fits.put("acme", "web", fitted(0.7))
    store = bus.transport.key_value(FITS)

    with caplog.at_level(logging.WARNING):
        await store.put(subjects.key("acme", "web", "e1"), b'{"threshold": 7, "methods": {}}')
        await bus.transport.flush()

    assert fits.of("acme", "web") is None
    assert fits.threshold("acme", "web", 0.5) == 0.5
    (record,) = caplog.records
    assert "channel 'web' cannot be used: /threshold" in record.getMessage()
    assert (await following(bus)).of("acme", "web") is None
