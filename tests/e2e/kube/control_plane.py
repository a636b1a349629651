"""A real control plane on loopback: etcd, API server, controllers and scheduler, and no node.

A fake kubelet makes of every pod that is scheduled one that runs and is ready, without containers.
"""

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lmos_mesh.errors import Conflict, MeshError, NotFound
from lmos_mesh.tether import tethered
from lmos_mesh_operator.kubernetes.cluster import Api, Cluster
from tests.kube_double import kubeconfig

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
NODES, PODS = Api("/api/v1", "nodes"), Api("/api/v1", "pods")
_TOKEN = "admin-of-a-test"
_READY_S = 90.0
_STOP_S = 10.0
_EVERY_S = 0.1


def missing(directory: str) -> str:
    """Why there can be no control plane; empty if there can."""
    if not directory:
        return (
            "LMOS_KUBE_BIN is not set: .ci/kube-build DIRECTORY makes kube-apiserver and its "
            "companions there in about ten minutes"
        )
    absent = [one for one in PROGRAMS if not (Path(directory) / one).exists()]
    absent += [] if etcd() else ["etcd"]
    absent += [] if shutil.which("openssl") else ["openssl"]
    return f"{', '.join(absent)} cannot be found" if absent else ""


def etcd() -> str | None:
    """Where etcd is."""
    return shutil.which("etcd")


@contextmanager
def control_plane(binaries: Path, directory: Path) -> Generator[Path]:
    """Run one, and give the kubeconfig of its administrator."""
    api, controllers, scheduler, client, peer = _free_ports(5)
    server = f"https://127.0.0.1:{api}"
    key = directory / "sa.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    (directory / "tokens.csv").write_text(f'{_TOKEN},admin,admin,"system:masters"\n')
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig(server, token=_TOKEN)))
    store, peers = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    common = [
        *(f"--{name}kubeconfig={path}" for name in ("", "authentication-", "authorization-")),
        *("--leader-elect=false", "--bind-address=127.0.0.1"),
        "--port=0",  # else a second one on this machine could not listen
    ]
    commands = {
        "etcd": [
            str(etcd()),
            *("--data-dir", str(directory / "etcd"), "--unsafe-no-fsync"),
            *("--listen-client-urls", store, "--advertise-client-urls", store),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", f"default={peers}"),
        ],
        "apiserver": [
            str(binaries / PROGRAMS[0]),
            f"--etcd-servers={store}",
            f"--cert-dir={directory / 'certs'}",
            "--bind-address=127.0.0.1",
            "--advertise-address=192.0.2.2",  # not loopback; it is only written into an object
            f"--secure-port={api}",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--authorization-mode=RBAC",
            f"--token-auth-file={directory / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--disable-admission-plugins=ServiceAccount",
        ],
        "controllers": [
            str(binaries / PROGRAMS[1]),
            *common,
            f"--secure-port={controllers}",
            f"--cert-dir={directory / 'c1'}",
            f"--service-account-private-key-file={key}",
        ],
        "scheduler": [
            str(binaries / PROGRAMS[2]),
            *common,
            f"--secure-port={scheduler}",
            f"--cert-dir={directory / 'c2'}",
        ],
    }
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands.items():
            if name == "controllers":
                _until_ready(f"{server}/readyz", directory)
            with (directory / f"{name}.log").open("wb") as log:
                started = subprocess.Popen(
                    tethered(command, signal.SIGKILL), stdout=log, stderr=subprocess.STDOUT
                )
            running.append(started)
        yield path
    finally:
        for one in reversed(running):
            one.terminate()
        for one in reversed(running):
            try:
                one.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


def _until_ready(url: str, directory: Path) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {_TOKEN}"})
    until = time.monotonic() + _READY_S
    while True:
        with suppress(urllib.error.URLError, OSError):
            if urllib.request.urlopen(request, timeout=2, context=context).read() == b"ok":
                return
        if time.monotonic() > until:
            told = (directory / "apiserver.log").read_text()[-2000:]
            raise AssertionError(f"the API server is not ready after {_READY_S:g} s:\n{told}")
        time.sleep(_EVERY_S)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in listeners]
    for one in listeners:
        one.close()
    return ports


async def fake_kubelet(cluster: Cluster) -> None:
    """Be a node until cancelled: its pods are ready at once, and end when they are deleted."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "fake"}, "spec": {}}
    with suppress(Conflict):
        await cluster.request("POST", NODES.at(), body=node)
    much = {"cpu": "32", "memory": "64Gi", "pods": "200"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "fake"}
    while True:
        with suppress(MeshError):
            status = {"allocatable": much, "capacity": much, "conditions": [{**ready, **_times()}]}
            await _patch(cluster, NODES.at("", "fake", "status"), {"status": status})
            await _patch(cluster, NODES.at("", "fake"), {"spec": {"taints": None}})
            for pod in await cluster.list(PODS):
                if pod["spec"].get("nodeName") == "fake":
                    await _tend(cluster, pod)
        await asyncio.sleep(_EVERY_S)


async def _tend(cluster: Cluster, pod: dict[str, Any]) -> None:
    at = PODS.at(pod["metadata"]["namespace"], pod["metadata"]["name"])
    if pod["metadata"].get("deletionTimestamp"):
        now = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        with suppress(NotFound):
            await cluster.request("DELETE", at, body=now)
        return
    if pod["status"].get("phase") == "Running":
        return
    types = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    since = _times()["lastTransitionTime"]
    status = {
        "phase": "Running",
        "podIP": "10.244.0.9",
        "startTime": since,
        "conditions": [
            {"type": one, "status": "True", "lastTransitionTime": since} for one in types
        ],
        "containerStatuses": [
            {
                "name": one["name"],
                "image": one["image"],
                "imageID": "fake",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": since}},
            }
            for one in pod["spec"]["containers"]
        ],
    }
    await _patch(cluster, f"{at}/status", {"status": status})


async def _patch(cluster: Cluster, path: str, body: dict[str, Any]) -> None:
    await cluster.request("PATCH", path, body=body, content="application/merge-patch+json")


def _times() -> dict[str, str]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"lastHeartbeatTime": now, "lastTransitionTime": now}


def binaries() -> str:
    """Where the programs are, as the environment has it."""
    return os.environ.get("LMOS_KUBE_BIN", "")
