"""Work in a process of its own comes back, fails, and ends as it would at home."""

import asyncio
import math
import os
import time

import pytest

from lmos_mesh_router.apart import WorkFailed, apart
from lmos_mesh_router.ranking import Learned, rank
from tests.router_fleets import fleet, near

SOON_S = 60.0


async def test_the_result_is_that_of_the_function() -> None:
    learned = Learned.of(fleet(3))

    async with asyncio.timeout(SOON_S):
        assert await apart(rank, near(1, 0, 7), learned) == rank(near(1, 0, 7), learned)
        assert await apart(os.getpid) != os.getpid()


async def test_what_the_work_prints_is_no_part_of_its_result() -> None:
    async with asyncio.timeout(SOON_S):
        await apart(print, "printed")


async def test_a_failure_says_why() -> None:
    with pytest.raises(WorkFailed, match=r"sqrt ended with status 1: ValueError: "):
        await apart(math.sqrt, -1)
    with pytest.raises(WorkFailed, match=r"abort ended with status -6"):
        await apart(os.abort)


async def test_whoever_waits_no_longer_ends_the_process() -> None:
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await apart(time.sleep, 60)

    assert time.monotonic() - began < SOON_S
