"""Whether the process of this container works: status 0 if it does, else 1 and one line.

    python healthcheck.py lmos-router                        # a micro service, on the bus
    python healthcheck.py http://127.0.0.1:8420/readyz       # an HTTP endpoint

A service is asked on the bus, as `nats micro ping` does: it answers only if it is connected, has
registered and is not stuck. Of several replicas, the one with this container's host name must
answer. It logs in as the processes do, with the URL or LMOS_NATS_CREDENTIALS. The few lines of
NATS protocol are written out here, because a check every few seconds must not load what the
processes load.
"""

import base64
import http.client
import json
import os
import re
import secrets
import socket
import ssl
import sys
import time
from importlib import import_module
from io import IOBase
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

TIMEOUT_S = 2.0


def check_http(url: str) -> None:
    """Return if a GET is answered with 200.

    Raises:
        OSError: It is not.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        reply = connection.getresponse()
        if reply.status != 200:
            body = reply.read(1000).decode(errors="replace")
            raise OSError(f"{reply.status} {' '.join(body.split())}")
    except (http.client.HTTPException, OSError) as exc:
        raise OSError(f"{url}: {exc or type(exc).__name__}") from exc
    finally:
        connection.close()


def check_service(name: str, servers: str) -> None:
    """Return if a micro service answers.

    Raises:
        OSError: It does not, or the bus cannot be reached.
    """
    failure: OSError | None = None
    for server in servers.split(","):
        url = urlsplit(server if "://" in server else f"nats://{server}")
        try:
            with socket.create_connection(
                (url.hostname or "127.0.0.1", url.port or 4222), timeout=TIMEOUT_S
            ) as raw:
                return _ping(raw, url, name)
        except TimeoutError:
            failure = OSError(f"{name} has not answered within {TIMEOUT_S:g} s")
        except OSError as exc:
            # Without the URL: it may hold a password.
            failure = OSError(f"{name}, asked through {url.hostname}: {exc}")
    raise failure or OSError("LMOS_NATS_URL names no server")


def _ping(raw: socket.socket, url: SplitResult, name: str) -> None:
    until = time.monotonic() + TIMEOUT_S
    info = json.loads(_line(raw.makefile("rb", buffering=0)).partition(b" ")[2])
    stream = raw
    if url.scheme == "tls" or info.get("tls_required"):
        stream = ssl.create_default_context().wrap_socket(raw, server_hostname=url.hostname)
    options: dict[str, object] = {"verbose": False, "pedantic": False, "lang": "python3"}
    options |= {"name": "healthcheck", "version": "0", "protocol": 1}
    if url.password is not None:
        options |= {"user": unquote(url.username or ""), "pass": unquote(url.password)}
    elif url.username:
        options["auth_token"] = unquote(url.username)
    if credentials := os.environ.get("LMOS_NATS_CREDENTIALS"):
        options |= _signed(credentials, str(info.get("nonce", "")))
    tenant = os.environ.get("LMOS_TENANT") or "demo"
    inbox = f"_INBOX.{tenant}.healthcheck-{secrets.token_hex(5)}.1"
    stream.sendall(
        f"CONNECT {json.dumps(options)}\r\nSUB {inbox} 1\r\n"
        f"PUB $SRV.PING.{name} {inbox} 0\r\n\r\n".encode()
    )
    lines = stream.makefile("rb")
    while True:
        stream.settimeout(max(0.001, until - time.monotonic()))
        line = _line(lines)
        if line.startswith(b"-ERR"):
            raise OSError(line.decode(errors="replace"))
        if line.startswith(b"PING"):
            stream.sendall(b"PONG\r\n")
        if line.startswith(b"MSG") and _is_ours(lines.read(int(line.split()[-1]))):
            return


def _signed(path: str, nonce: str) -> dict[str, object]:
    """What a user with credentials says in CONNECT: who it is, and the server's nonce, signed."""
    nkeys: Any = import_module("nkeys")  # only here: it takes longer than all the rest

    with open(path) as file:
        parts = re.findall(r"-----BEGIN [^-]+-----\s+(\S+)\s+-----", file.read())
    if len(parts) != 2:
        raise OSError(f"{path} holds no NATS credentials, which are a JWT and a seed")
    jwt, seed = parts
    try:
        signature = nkeys.from_seed(bytearray(seed.encode())).sign(nonce.encode())
    except (nkeys.NkeysError, ValueError) as exc:
        raise OSError(f"{path}: its seed is none: {type(exc).__name__}") from None
    return {"jwt": jwt, "sig": base64.b64encode(signature).decode()}


def _line(lines: IOBase) -> bytes:
    line = lines.readline()
    if not line:
        raise OSError("the server has closed the connection")
    return line.strip()


def _is_ours(answer: bytes) -> bool:
    if not answer:
        return False
    host = json.loads(answer).get("metadata", {}).get("host")
    return host in (None, socket.gethostname())


def main() -> None:
    """Check what the command line names."""
    try:
        _, what = sys.argv
    except ValueError:
        sys.exit("usage: healthcheck.py SERVICE | URL")
    try:
        if what.startswith("http://"):
            check_http(what)
        else:
            check_service(what, os.environ.get("LMOS_NATS_URL") or "nats://127.0.0.1:4222")
    except (OSError, ValueError) as exc:
        sys.exit(f"unhealthy: {exc}")


if __name__ == "__main__":
    main()
