"""Who asks, as they call themselves: it arrives as it was said, and breaks nothing on its way."""

import pytest

from lmos_mesh.bus import route
from lmos_mesh.calls import CALLER, Call, caller_headers
from lmos_mesh.endpoint import Endpoint, Message
from tests.conftest import Mesh


class Asked(Message):
    """Nothing in particular."""


class Told(Message):
    """Who has asked."""

    caller: str


WHO = Endpoint("registry", "who", Asked, Told)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("ann@laptop (cli-1)", "ann@laptop (cli-1)"),
        ("Zoë Müller@büro", "Zoë Müller@büro"),
        ("mallory\r\nLmos-Tenant: other", "mallory??Lmos-Tenant: other"),
        ("100 %@home", "100 %@home"),
        ("x" * 5000, "x" * 256),
        ("no text \udcff", "no text ?"),
        ("", ""),
    ],
)
async def test_who_asks_is_told_to_whoever_answers(mesh: Mesh, said: str, heard: str) -> None:
    async def answer(_: Asked, call: Call) -> Told:
        return Told(caller=call.caller)

    async with mesh.bus() as serving, mesh.bus() as asking:
        await serving.serve("registry", [route(WHO, answer)])
        told = await asking.call(WHO, Asked(), headers=caller_headers(said), nobody_s=2.0)
        anonymous = await asking.call(WHO, Asked())
        raw = await asking.call(WHO, Asked(), headers={CALLER: "plain text, 50%"})

    assert told.caller == heard
    assert anonymous.caller == ""
    assert raw.caller == "plain text, 50%"
