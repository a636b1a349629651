"""`/docs`: Swagger UI from an installed package, so that it works without the internet."""

from functools import cache
from html import escape
from importlib import resources

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

_PACKAGE = "fastapi_swagger"
_FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}
_DAY = {"cache-control": "public, max-age=86400"}


def add_docs(app: FastAPI) -> None:
    """Add `/docs`, its files, and the way there from `/`."""

    async def docs(request: Request) -> Response:
        if _file("swagger-ui-bundle.js") is None:
            return Response(_without_files(app), media_type="text/html; charset=utf-8")
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="data:,",
            # Its validator is on the internet.
            swagger_ui_parameters={"validatorUrl": None, "displayRequestDuration": True},
        )

    async def file(request: Request) -> Response:
        name = request.url.path.rsplit("/", 1)[1]
        content = _file(name)
        if content is None:
            return Response(status_code=404)
        return Response(content, headers=_DAY, media_type=_FILES[name])

    async def root(request: Request) -> Response:
        return RedirectResponse("/docs")

    app.add_route("/docs", docs, include_in_schema=False)
    for name in _FILES:
        app.add_route(f"/docs/{name}", file, include_in_schema=False)
    app.add_route("/", root, include_in_schema=False)


@cache
def _file(name: str) -> bytes | None:
    try:
        return (resources.files(_PACKAGE) / "resources" / name).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        return None


def _without_files(app: FastAPI) -> str:
    """What can be done, without the pages that show it."""
    rows = "".join(
        f"<li><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</li>"
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(app.title)}</title>"
        f"<h1>{escape(app.title)}</h1><ul>{rows}</ul>"
        "<p>The whole description: <a href=/openapi.json>/openapi.json</a>. To read it here, "
        "install the page that shows it: <code>pip install 'lmos-mesh[http]'</code></p>"
    )
