"""The published contract is the one that the code keeps."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, cast

DOCS = Path(__file__).parents[2] / "docs"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_asyncapi", DOCS / "make_asyncapi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_asyncapi_document_is_up_to_date() -> None:
    text = maker().text()

    assert (DOCS / "asyncapi.yaml").read_text() == text, "run: python docs/make_asyncapi.py"


def test_every_reference_in_it_leads_somewhere() -> None:
    document = maker().document()

    def check(value: Any) -> None:
        if isinstance(value, dict):
            given = cast("dict[str, Any]", value)
            found: Any = document
            for step in str(given.get("$ref", "#/")).removeprefix("#/").split("/"):
                found = found[step] if step else found
            for one in given.values():
                check(one)
        elif isinstance(value, list):
            for one in cast("list[Any]", value):
                check(one)

    check(document)
