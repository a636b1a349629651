"""One trace over all hops, as a real OTLP receiver sees it; and none broken without one."""

import asyncio
import json
import secrets
from pathlib import Path

import httpx
import pytest

from tests.conftest import FrailServer
from tests.integration.processes import Deployment, plain_client
from tests.otlp_sink import OtlpSink, SeenSpan

BILLING = """
    from lmos_mesh import Agent, Context
    from lmos_mesh.calls import current

    agent = Agent("billing", description="Answers questions about bills.")

    @agent.capability(examples=["show my bill"])
    async def view_bill(question: str, context: Context) -> str:
        \"\"\"Show a bill.\"\"\"
        return "39.99, traceparent " + current.get().headers.get("traceparent", "none")

    agent.run()
"""


def deploy(url: str, directory: Path, tenant: str, **env: str) -> tuple[Deployment, str]:
    """A mesh of its own with an HTTP adapter, and where that listens."""
    deployment = Deployment(url, directory, env={"LMOS_TENANT": tenant, **env})
    deployment.services("registry", "router", "runtime")
    deployment.agent(BILLING, name="billing")
    http = deployment.service("http", LMOS_HTTP_PORT="0")
    told = str(http.wait_logged("listening on")["event"])
    return deployment, told.split("listening on ")[1].split()[0]


async def ask(address: str, tenant: str, traceparent: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.post(
            f"{address}/apis/v1/{tenant}/chat/c1/message",
            headers={"x-turn-id": "t1", "traceparent": traceparent},
            json={
                "inputContext": {"messages": [{"role": "user", "content": "show my bill"}]},
                "systemContext": {"channelId": "web"},
                "userContext": {"userId": "me"},
            },
        )


def lost_of(spans: list[SeenSpan], root: str) -> list[SeenSpan]:
    """The spans whose parent is neither among them nor the caller."""
    known = {one.id for one in spans} | {root}
    return [one for one in spans if one.parent not in known]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_request_is_one_trace_from_http_to_the_agent(
    fresh_nats: FrailServer, tmp_path: Path, protocol: str
) -> None:
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    with OtlpSink() as sink:
        deployment, address = await asyncio.to_thread(
            deploy,
            fresh_nats.url,
            tmp_path,
            "traced",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.grpc_url if protocol == "grpc" else sink.http_url,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_INSECURE="true",
            OTEL_BSP_SCHEDULE_DELAY="50",
        )
        try:
            response = await ask(address, "traced", f"00-{trace}-{parent}-01")
            hops = {"lmos-http", "lmos-runtime", "lmos-router", "lmos-billing"}
            await asyncio.to_thread(deployment.check_stop)
            spans = [one for one in sink.wait(hops) if one.trace == trace]
        finally:
            deployment.stop()

    assert response.status_code == 200
    assert {one.service for one in spans} == hops
    assert not lost_of(spans, parent)
    decided = next(one for one in spans if one.service == "lmos-router")
    assert decided.name == "process lmos.{tenant}.router.decide"
    assert decided.attributes["messaging.system"] == "nats"
    said = [value for one in spans for value in one.attributes.values()]
    assert not any("show my bill" in value for value in said), "no prompt content by default"


async def test_without_an_exporter_the_callers_trace_is_passed_on(
    fresh_nats: FrailServer, tmp_path: Path
) -> None:
    traceparent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    deployment, address = await asyncio.to_thread(deploy, fresh_nats.url, tmp_path, "untraced")
    try:
        response = await ask(address, "untraced", traceparent)
    finally:
        deployment.stop()

    assert response.json()["content"] == f"39.99, traceparent {traceparent}"


async def test_the_end_of_a_synadia_reply_has_no_header(
    fresh_nats: FrailServer, tmp_path: Path
) -> None:
    with OtlpSink() as sink:
        deployment = Deployment(
            fresh_nats.url, tmp_path, env={"OTEL_EXPORTER_OTLP_ENDPOINT": sink.http_url}
        )
        deployment.services("registry")
        await asyncio.to_thread(deployment.agent, BILLING, name="billing")
        try:
            async with plain_client(fresh_nats.url) as client:
                inbox = client.new_inbox()
                replies = await client.subscribe(inbox)
                headers = {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"}
                await client.publish(
                    "agents.prompt.lmos.demo.billing", b"show my bill", reply=inbox, headers=headers
                )
                chunks = [await replies.next_msg(timeout=10)]
                while chunks[-1].data:
                    chunks.append(await replies.next_msg(timeout=10))
        finally:
            deployment.stop()

    assert json.loads(chunks[0].data) == {"type": "status", "data": "ack"}
    assert chunks[-1].headers is None
