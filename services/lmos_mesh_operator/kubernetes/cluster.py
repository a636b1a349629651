"""The cluster's API: reads and writes objects, each write only on what was seen."""

import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

from lmos_mesh.errors import (
    Conflict,
    InvalidMessage,
    MeshError,
    NotFound,
    SettingsError,
    Unavailable,
)
from lmos_mesh.resources import GROUP, KINDS, VERSION
from lmos_mesh_operator.kubernetes.objects import metadata

_TIMEOUT_S = 15.0
_PAGE = 500


class Api(NamedTuple):
    """A kind of objects, as the cluster's API names it."""

    path: str
    plural: str

    def at(self, namespace: str = "", name: str = "", part: str = "") -> str:
        """The path of all of them, those of a namespace, one, or a part of one."""
        within = f"/namespaces/{namespace}" if namespace else ""
        return "/".join(one for one in (f"{self.path}{within}/{self.plural}", name, part) if one)


OURS = {kind: Api(f"/apis/{GROUP}/{VERSION}", model.plural) for kind, model in KINDS.items()}
DEPLOYMENTS = Api("/apis/apps/v1", "deployments")
SERVICES = Api("/api/v1", "services")


class Forbidden(MeshError):
    """The cluster lets us not do that: its roles do not allow it."""

    code = "forbidden-by-cluster"
    title = "Not allowed"
    status = 403


class Cluster:
    """A connection to the cluster's API."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def list(
        self, api: Api, namespaces: Sequence[str] = (), *, labels: str = ""
    ) -> list[dict[str, Any]]:
        """All objects of a kind, in these namespaces or in all.

        Raises:
            NotFound: The cluster does not know the kind.
        """
        found: list[dict[str, Any]] = []
        for namespace in namespaces or ("",):
            query = {"limit": str(_PAGE)} | ({"labelSelector": labels} if labels else {})
            while True:
                page = await self.request("GET", api.at(namespace), query=query)
                found += page.get("items") or ()
                following = metadata(page).get("continue")
                if not following:
                    break
                query["continue"] = following
        return found

    async def get(self, api: Api, namespace: str, name: str) -> dict[str, Any]:
        """One object.

        Raises:
            NotFound: There is none of that name.
        """
        return await self.request("GET", api.at(namespace, name))

    async def post(self, api: Api, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object.

        Raises:
            Conflict: There is one of that name.
        """
        namespace = str(body["metadata"]["namespace"])
        return await self.request("POST", api.at(namespace), body=body)

    async def put(self, api: Api, body: Mapping[str, Any], *, part: str = "") -> dict[str, Any]:
        """Replace an object, or its `status`.

        Raises:
            Conflict: Somebody has written it since it was read.
        """
        named = metadata(body)
        at = api.at(str(named["namespace"]), str(named["name"]), part)
        return await self.request("PUT", at, body=body)

    async def patch(
        self, api: Api, namespace: str, name: str, body: Mapping[str, Any], *, part: str = ""
    ) -> dict[str, Any]:
        """Change some members of an object, or of a part of it."""
        return await self.request(
            "PATCH",
            api.at(namespace, name, part),
            body=body,
            content="application/merge-patch+json",
        )

    async def delete(
        self, api: Api, namespace: str, name: str, *, uid: str = "", version: str = ""
    ) -> None:
        """Delete an object, if it is that one, as it was seen.

        Raises:
            Conflict: It is another one, or has changed.
        """
        known = {"uid": uid, "resourceVersion": version}
        only = {name: value for name, value in known.items() if value}
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
        }
        if only:
            options["preconditions"] = only
        await self.request("DELETE", api.at(namespace, name), body=options)

    async def fetch(self, url: str, *, timeout_s: float, most: int) -> bytes:
        """Read a document of a service in the cluster.

        Raises:
            Unavailable: It cannot be had; with the reason.
        """
        import aiohttp

        try:
            limit = aiohttp.ClientTimeout(total=timeout_s)
            async with (
                aiohttp.ClientSession(timeout=limit, trust_env=True) as session,
                session.get(
                    url, headers={"Accept": "application/json"}, allow_redirects=False
                ) as reply,
            ):
                body = await reply.content.read(most + 1)
                if reply.status != 200:
                    raise Unavailable(f"GET {url} was answered with {reply.status}")
        except TimeoutError:
            raise Unavailable(f"GET {url} was not answered within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise Unavailable(f"GET {url}: {exc or type(exc).__name__}") from exc
        if len(body) > most:
            raise Unavailable(f"GET {url}: the answer is larger than {most} bytes")
        return body

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        """Ask the API.

        Raises:
            NotFound: There is no such thing.
            Conflict: It is another one, or has changed.
            Forbidden: Its roles do not allow it.
            InvalidMessage: The cluster does not take the body.
            Unavailable: The cluster does not answer.
        """
        import aiohttp
        from kubernetes_asyncio.client.exceptions import ApiException

        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content
        try:
            answer = await self._client.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                response_types_map={200: "object", 201: "object", 202: "object"},
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT_S,
            )
        except ApiException as exc:
            raise _translated(method, path, cast("Any", exc)) from exc
        except TimeoutError:
            said = f"{method} {path}: the cluster has not answered within {_TIMEOUT_S:g} s"
            raise Unavailable(said) from None
        except (aiohttp.ClientError, OSError) as exc:
            raise Unavailable(f"{method} {path}: {exc or type(exc).__name__}") from exc
        return cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}


@asynccontextmanager
async def connected() -> AsyncGenerator[Cluster]:
    """The cluster that this process runs in, else the one of the kubeconfig.

    Raises:
        SettingsError: There is neither, or what it takes is not installed.
    """
    configuration = await configured()
    client = _loaded()[1].ApiClient(configuration)
    client.user_agent = "lmos-mesh-operator"
    try:
        yield Cluster(client)
    finally:
        await client.close()


async def configured() -> Any:
    """Where the cluster is, and who we are there.

    Raises:
        SettingsError: Nobody says, or what it takes is not installed.
    """
    config, client = _loaded()
    configuration = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            path = os.environ.get("KUBECONFIG") or None
            await config.load_kube_config(config_file=path, client_configuration=configuration)
    except (config.ConfigException, OSError, ValueError) as exc:
        raise SettingsError(
            f"no cluster is known: {exc}",
            hint="run the operator in a pod with a ServiceAccount, or set KUBECONFIG",
        ) from exc
    return configuration


def _loaded() -> tuple[Any, Any]:
    try:
        from kubernetes_asyncio import client, config
    except ImportError as exc:
        raise SettingsError(
            f"the Kubernetes mode needs packages that are not installed: {exc}",
            hint="pip install 'lmos-mesh[kubernetes]', or unset LMOS_OPERATOR_KUBERNETES",
        ) from None
    return config, client


def _translated(method: str, path: str, error: Any) -> MeshError:
    status = int(error.status or 0)
    said = f"{method} {path}: {status} {_message(error)}".strip()
    if status == 404:
        return NotFound(said)
    if status == 409:
        return Conflict(said)
    if status in (401, 403):
        steers = method == "PATCH" and f"/{DEPLOYMENTS.plural}/" in path
        needs = "`operator.steering` in the values" if steers else "the roles"
        return Forbidden(
            said, hint=f"the operator's ServiceAccount needs {needs} of deploy/helm/lmos-mesh"
        )
    if status in (400, 422):
        return InvalidMessage(said)
    return Unavailable(said)


def _message(error: Any) -> str:

    try:
        told = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        told = error.reason or ""
    return " ".join(str(told).split())[:500]
