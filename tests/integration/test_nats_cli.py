"""The mesh through the `nats` command, where that is installed."""

import asyncio
import json
import shutil
import subprocess

import pytest

from tests.integration.processes import Deployment

NATS = shutil.which("nats")

BILLING = """
    from lmos_mesh import Agent, Context

    agent = Agent("billing", description="Answers questions about bills.")

    @agent.capability(examples=["show my bill"])
    async def view_bill(question: str, context: Context) -> str:
        \"\"\"Show a bill.\"\"\"
        return "39.99"

    agent.run()
"""


@pytest.mark.skipif(NATS is None, reason="the `nats` command is not installed")
async def test_nats_req_gets_the_whole_answer(services: Deployment, tenant: str) -> None:
    assert NATS is not None
    await asyncio.to_thread(services.agent, BILLING, name="billing", LMOS_TENANT=tenant)
    subject = f"lmos.{tenant}.runtime.converse"

    asked = await asyncio.to_thread(
        subprocess.run,
        [NATS, "--server", services.url, "req", "--raw", subject, '{"message":"show my bill"}'],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )

    assert json.loads(asked.stdout)["answer"] == "39.99"
