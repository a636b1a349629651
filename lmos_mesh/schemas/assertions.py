"""What the Recommendations ask of a Thing Description, and their JSON Schema cannot see. Pure.

Each rule is one that whoever consumes the Description would trip over: names that nobody defines,
terms that mean nothing, forms that cannot be used.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from lmos_mesh.json_faults import Faults, kind_of, pointer, quoted

TD_CONTEXTS = ("https://www.w3.org/2022/wot/td/v1.1", "https://www.w3.org/2019/wot/td/v1")
DISCOVERY_CONTEXT = "https://www.w3.org/2022/wot/discovery"
LMOS_CONTEXT = "https://eclipse.dev/lmos/protocol/v1"

_SCHEMES = frozenset(("urn", "did", "tag"))
# Prefixes that the context of Thing Descriptions declares.
_KNOWN_PREFIXES = frozenset(
    ("td", "jsonschema", "wotsec", "hctl", "htv", "tm", "dct", "rdfs", "xsd")
)
_OUR_PREFIXES = ("lmos", "mesh", "nats")
_CONTEXTS_WITHOUT_PREFIXES = frozenset({*TD_CONTEXTS, DISCOVERY_CONTEXT, LMOS_CONTEXT})
_KEYWORDS = frozenset({"@context", "@type"})

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"\\^`]+\Z")
_REFERENCE = re.compile(r"[^\s<>\"\\^`]+\Z")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_MEDIA_TYPE = re.compile(
    r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+*-]+(\s*;\s*[A-Za-z0-9!#$&^_.+-]+=(\"[^\"]*\"|[^\s;\"]+))*\Z"
)
_LANGUAGE = re.compile(
    r"([A-Za-z]{2,3}(-[A-Za-z]{3}){0,3}|[A-Za-z]{4,8})(-[A-Za-z]{4})?(-([A-Za-z]{2}|[0-9]{3}))?"
    r"(-([A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*(-[A-WYZa-wyz0-9](-[A-Za-z0-9]{2,8})+)*"
    r"(-x(-[A-Za-z0-9]{1,8})+)?\Z|x(-[A-Za-z0-9]{1,8})+\Z|i-[A-Za-z]+\Z"
)
_EXPRESSION = re.compile(r"\{([^{}]*)\}")
# RFC 6570, and the hyphens that everybody writes.
_VARIABLES = re.compile(
    r"[+#./;?&]?([A-Za-z0-9_.%-]+(:[0-9]+|\*)?(,[A-Za-z0-9_.%-]+(:[0-9]+|\*)?)*)\Z"
)
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z")

_AFFORDANCES = ("properties", "actions", "events")
_SCHEMAS_OF = {
    "actions": ("input", "output"),
    "events": ("subscription", "data", "dataResponse", "cancellation"),
}
_BOUNDS = (
    ("minimum", "maximum"),
    ("exclusiveMinimum", "exclusiveMaximum"),
    ("minItems", "maxItems"),
    ("minLength", "maxLength"),
)
_FITS: dict[str, Callable[[object], bool]] = {
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and float(cast("float", value)).is_integer(),
    "number": lambda value: _is_number(value),
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, Mapping),
    "array": lambda value: isinstance(value, list | tuple),
    "null": lambda value: value is None,
}
_NEEDED_BY_FLOW = {
    "code": ("authorization", "token"),
    "client": ("token",),
    "device": ("authorization", "token"),
}

_Object = Mapping[str, Any]


def check_assertions(document: _Object, found: Faults) -> None:
    """Note what breaks a rule of the Recommendations, where it has the right types at all."""
    terms = _Terms.of(document)
    _check_context(document, found)
    _check_terms(document, terms, found)
    _check_languages(document, "", found)
    _check_security_schemes(document, terms, found)
    _check_base(document, found)
    _check_links(document, found)
    everywhere = _names_of_uri_variables(document, "", found)
    named_in_uri = everywhere | _names_in_uris(document)
    _check_forms(document, "", _Holder(document, terms, named_in_uri), found)
    for several in _AFFORDANCES:
        for name, one in _objects(document.get(several)):
            at = pointer(several, name)
            _check_affordance(several, one, at, terms, found)
            variables = named_in_uri | _names_of_uri_variables(one, at, found)
            _check_forms(one, at, _Holder(document, terms, variables), found)
    for name, schema in _objects(document.get("schemaDefinitions")):
        _check_schema(schema, pointer("schemaDefinitions", name), terms, found)


def check_registration(document: _Object, found: Faults) -> None:
    """Note what is wrong with the registration information of W3C WoT Discovery."""
    if "registration" not in document:
        return
    registration = document["registration"]
    if not isinstance(registration, Mapping):
        found.add("/registration", f"must be an object, not {kind_of(registration)}")
        return
    stated = cast("_Object", registration)
    for name in ("created", "modified", "expires", "retrieved"):
        if name in stated and not is_date_time(stated[name]):
            found.add(f"/registration/{name}", SAID_OF_DATE_TIME)
    ttl = stated.get("ttl", 1)
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or ttl <= 0:
        found.add("/registration/ttl", "must be a number of seconds above 0")


SAID_OF_DATE_TIME = "must be a date and time of RFC 3339, e.g. 2026-01-31T12:00:00Z"


def is_date_time(value: object) -> bool:
    """Whether a value is a date and time of RFC 3339."""
    if not isinstance(value, str) or not _RFC_3339.match(value):
        return False
    try:
        datetime.fromisoformat(value.upper())
    except ValueError:
        return value[17:19] == "60"
    return True


def prefixes_of(document: _Object) -> set[str]:
    """The prefixes that the `@context` of a Description declares."""
    declared: set[str] = set()
    for entry in _several(document.get("@context")):
        if entry == LMOS_CONTEXT:
            declared.add("lmos")
        elif isinstance(entry, Mapping):
            declared |= {name for name in cast("_Object", entry) if not name.startswith("@")}
    return declared


@dataclass(frozen=True, slots=True)
class _Terms:
    """What prefixes a Description may use.

    Attributes:
        open: A context that is not known here may declare any, or there is none at all.
        told: Those of ours that are known to be missing.
    """

    declared: set[str]
    open: bool
    told: set[str] = field(default_factory=set[str])

    @classmethod
    def of(cls, document: _Object) -> "_Terms":
        contexts = [one for one in _several(document.get("@context")) if isinstance(one, str)]
        return cls(
            prefixes_of(document), not contexts or bool(set(contexts) - _CONTEXTS_WITHOUT_PREFIXES)
        )

    def undeclared(self, term: str) -> str:
        """The prefix of a term that nobody declares; empty if there is none."""
        prefix, colon, rest = term.partition(":")
        if (
            not colon
            or rest.startswith("//")
            or prefix in self.declared | _KNOWN_PREFIXES | _SCHEMES
        ):
            return ""
        return prefix if prefix in _OUR_PREFIXES or not self.open else ""


@dataclass(frozen=True, slots=True)
class _Holder:
    """What the forms of an affordance depend on."""

    document: _Object
    terms: _Terms
    variables: set[str]


def _check_context(document: _Object, found: Faults) -> None:
    context = document.get("@context")
    for index, entry in enumerate(_several(context)):
        at = f"/@context/{index}" if isinstance(context, list) else "/@context"
        if isinstance(entry, str):
            if not _ABSOLUTE.match(entry):
                found.add(at, f"{quoted(entry)} is no absolute URI, and contexts are named by one")
        elif isinstance(entry, Mapping):
            for name, value in cast("_Object", entry).items():
                _check_context_term(name, value, f"{at}{pointer(name)}", found)


def _check_context_term(name: str, value: object, at: str, found: Faults) -> None:
    if not isinstance(value, str):
        return
    if name == "@language":
        if not _LANGUAGE.match(value):
            found.add(at, f"{quoted(value)} is no language tag; write it like en or de-CH")
    elif name == "@direction":
        if value not in ("ltr", "rtl"):
            found.add(at, f"must be ltr or rtl, not {quoted(value)}")
    elif name in ("@base", "@import", "@vocab") or value.startswith("@"):
        return
    elif name.startswith("@"):
        found.add(at, "is no keyword that a context may have, and no prefix may begin with @")
    elif not _ABSOLUTE.match(value):
        found.add(at, f"{quoted(value)} is no absolute URI, so that the prefix stands for nothing")


def _check_terms(document: _Object, terms: _Terms, found: Faults) -> None:
    for member in document:
        if member.startswith("@") and member not in _KEYWORDS:
            if said := _SAID_OF_KEYWORD.get(member):
                found.add(pointer(member), said)
        elif member.partition(":")[0] in _OUR_PREFIXES:
            _check_term(member, pointer(member), terms, found)
    _check_type(document, "", terms, found)


_SAID_OF_KEYWORD = {
    "@id": "is called id in a Thing Description",
    "@graph": "holds several things; register each of them by itself",
    "@language": "belongs into @context",
    **dict.fromkeys(
        ("@value", "@list", "@set", "@reverse"), "means to JSON-LD that this is no Thing at all"
    ),
}


def _check_term(term: str, at: str, terms: _Terms, found: Faults) -> None:
    prefix = terms.undeclared(term)
    if prefix in _OUR_PREFIXES:
        # Once is enough: these are declared in one place, and used in many.
        if prefix not in terms.told:
            found.add("/@context", f"must declare the prefix {quoted(prefix)}, which {at} uses")
        terms.told.add(prefix)
    elif prefix:
        found.add(at, f"uses the prefix {quoted(prefix)}, which @context does not declare")


def _check_type(holder: _Object, at: str, terms: _Terms, found: Faults) -> None:
    stated = holder.get("@type")
    for index, term in enumerate(_several(stated)):
        here = f"{at}/@type/{index}" if isinstance(stated, list) else f"{at}/@type"
        if not isinstance(term, str):
            continue
        if term and not _REFERENCE.match(term):
            found.add(here, f"{quoted(term)} is no term: it has a space or a quote")
        else:
            _check_term(term, here, terms, found)


def _check_affordance(several: str, one: _Object, at: str, terms: _Terms, found: Faults) -> None:
    _check_type(one, at, terms, found)
    _check_languages(one, at, found)
    if several == "properties":
        _check_schema(one, at, terms, found, itself=False)
    for member in _SCHEMAS_OF.get(several, ()):
        if isinstance(schema := one.get(member), Mapping):
            _check_schema(cast("_Object", schema), f"{at}/{member}", terms, found)


def _check_schema(
    schema: _Object, at: str, terms: _Terms, found: Faults, *, itself: bool = True
) -> None:
    if itself:
        _check_type(schema, at, terms, found)
        _check_languages(schema, at, found)
    if schema.get("readOnly") is True and schema.get("writeOnly") is True:
        found.add(f"{at}/writeOnly", "is true, and so is readOnly; nobody could use the value")
    for least, most in _BOUNDS:
        low, high = schema.get(least), schema.get(most)
        if _is_number(low) and _is_number(high) and cast("float", low) > cast("float", high):
            found.add(f"{at}/{most}", f"is {quoted(high)}, below {least}, which is {quoted(low)}")
    _check_values(schema, at, found)
    for where, inner in _inner_schemas(schema):
        _check_schema(inner, at + where, terms, found)


def _check_values(schema: _Object, at: str, found: Faults) -> None:
    """Note values that are not of the type that their own schema names."""
    kind = schema.get("type")
    fits = _FITS.get(kind) if isinstance(kind, str) else None
    if fits is None:
        return
    stated = [(f"{at}/{one}", schema[one]) for one in ("const", "default") if one in schema]
    if isinstance(options := schema.get("enum"), list):
        stated += [(f"{at}/enum/{n}", one) for n, one in enumerate(cast("list[object]", options))]
    for where, value in stated:
        if not fits(value):
            found.add(where, f"is {kind_of(value)}, and the type is {kind}")


def _inner_schemas(schema: _Object) -> Iterator[tuple[str, _Object]]:
    for name, inner in _objects(schema.get("properties")):
        yield pointer("properties", name), inner
    for member in ("items", "oneOf"):
        value = schema.get(member)
        if isinstance(value, Mapping):
            yield f"/{member}", cast("_Object", value)
        else:
            for index, inner in _listed_objects(value):
                yield f"/{member}/{index}", inner


def _check_languages(holder: _Object, at: str, found: Faults) -> None:
    for member in ("titles", "descriptions"):
        value = holder.get(member)
        if not isinstance(value, Mapping):
            continue
        for tag in cast("_Object", value):
            if not _LANGUAGE.match(tag):
                found.add(
                    f"{at}{pointer(member, tag)}", "is no language tag; write it like en or de-CH"
                )


def _check_security_schemes(document: _Object, terms: _Terms, found: Faults) -> None:
    schemes = dict(_objects(document.get("securityDefinitions")))
    for name, scheme in schemes.items():
        at = pointer("securityDefinitions", name)
        _check_languages(scheme, at, found)
        kind = scheme.get("scheme")
        if kind == "oauth2":
            _check_flow(scheme, at, found)
        elif kind == "apikey" and scheme.get("in") == "uri" and "name" not in scheme:
            found.add(f"{at}/name", "is missing; it names the variable of the URI for the key")
        elif kind == "combo" and _is_circular(name, schemes):
            found.add(at, "is combined of itself, in the end")
        elif isinstance(kind, str) and ":" in kind:
            _check_term(kind, f"{at}/scheme", terms, found)
        for member in ("authorization", "token", "refresh", "proxy"):
            if (uri := scheme.get(member)) and isinstance(uri, str) and not _REFERENCE.match(uri):
                found.add(f"{at}/{member}", f"{quoted(uri)} is no URI")


def _check_flow(scheme: _Object, at: str, found: Faults) -> None:
    flow = scheme.get("flow")
    if flow is None:
        found.add(f"{at}/flow", "is missing; it is code, client or device")
    elif flow == "client" and "authorization" in scheme:
        found.add(f"{at}/authorization", "is not used by the flow client; leave it out")
    for member in _NEEDED_BY_FLOW.get(flow, ()) if isinstance(flow, str) else ():
        if member not in scheme:
            found.add(f"{at}/{member}", f"is missing, and the flow {flow} needs it")


def _is_circular(name: str, schemes: Mapping[str, _Object]) -> bool:
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        scheme = schemes.get(ahead.pop(), {})
        for member in ("oneOf", "allOf"):
            for one in _several(scheme.get(member)):
                if one == name:
                    return True
                if isinstance(one, str) and one not in seen:
                    seen.add(one)
                    ahead.append(one)
    return False


def _check_base(document: _Object, found: Faults) -> None:
    base = document.get("base")
    if isinstance(base, str) and not _ABSOLUTE.match(base):
        found.add("/base", f"{quoted(base)} is no absolute URI, so that nothing can begin with it")
    support = document.get("support")
    if isinstance(support, str) and not _REFERENCE.match(support):
        found.add("/support", f"{quoted(support)} is no URI")


def _check_links(document: _Object, found: Faults) -> None:
    typed = 0
    for index, link in _listed_objects(document.get("links")):
        for member in ("href", "anchor"):
            uri = link.get(member)
            if isinstance(uri, str) and not _REFERENCE.match(uri):
                found.add(f"/links/{index}/{member}", f"{quoted(uri)} is no URI")
        media = link.get("type")
        if isinstance(media, str) and not _MEDIA_TYPE.match(media.strip()):
            found.add(f"/links/{index}/type", f"{quoted(media)} is no media type like text/html")
        typed += link.get("rel") == "type"
        if link.get("rel") == "type" and typed == 2:
            found.add(f"/links/{index}/rel", "is type a second time; a Thing is of one model")


def _names_of_uri_variables(holder: _Object, at: str, found: Faults) -> set[str]:
    variables = dict(_objects(holder.get("uriVariables")))
    for name, schema in variables.items():
        if schema.get("type") in ("object", "array"):
            found.add(
                f"{at}{pointer('uriVariables', name)}/type",
                f"is {schema['type']}, which does not fit into a URI; write a simple type",
            )
    return set(variables)


def _names_in_uris(document: _Object) -> set[str]:
    """The variables that security schemes fill in."""
    return {
        str(scheme["name"])
        for _, scheme in _objects(document.get("securityDefinitions"))
        if scheme.get("in") == "uri" and "name" in scheme
    }


def _check_forms(holder: _Object, at: str, of: _Holder, found: Faults) -> None:
    for index, form in _listed_objects(holder.get("forms")):
        here = f"{at}/forms/{index}"
        for member in form:
            if member.partition(":")[0] in _OUR_PREFIXES:
                _check_term(member, here + pointer(member), of.terms, found)
        _check_href(form, here, of, found)
        _check_scopes(form, here, of.document, found)
        for where, media in _media_types(form):
            if not _MEDIA_TYPE.match(media.strip()):
                found.add(
                    f"{here}{where}", f"{quoted(media)} is no media type like application/json"
                )
        for number, response in _listed_objects(form.get("additionalResponses")):
            schema = response.get("schema")
            if isinstance(schema, str) and schema not in dict(
                _objects(of.document.get("schemaDefinitions"))
            ):
                found.add(
                    f"{here}/additionalResponses/{number}/schema",
                    f"names {quoted(schema)}, which schemaDefinitions does not define",
                )


def _media_types(form: _Object) -> Iterator[tuple[str, str]]:
    if isinstance(form.get("contentType"), str):
        yield "/contentType", form["contentType"]
    response = form.get("response")
    if isinstance(response, Mapping) and isinstance(
        media := cast("_Object", response).get("contentType"), str
    ):
        yield "/response/contentType", media
    for number, one in _listed_objects(form.get("additionalResponses")):
        if isinstance(one.get("contentType"), str):
            yield f"/additionalResponses/{number}/contentType", one["contentType"]


def _check_href(form: _Object, at: str, of: _Holder, found: Faults) -> None:
    href = form.get("href")
    if not isinstance(href, str):
        return
    if not _REFERENCE.match(href):
        found.add(f"{at}/href", f"{quoted(href)} is no URI")
    elif not _SCHEME.match(href) and "base" not in of.document:
        found.add(f"{at}/href", f"{quoted(href)} is relative, and there is no base to begin with")
    elif re.search(r"[{}]", _EXPRESSION.sub("", href)):
        found.add(f"{at}/href", "has a brace without its partner")
    else:
        for expression in _EXPRESSION.findall(href):
            _check_expression(expression, f"{at}/href", of.variables, found)


def _check_expression(expression: str, at: str, variables: set[str], found: Faults) -> None:
    if not _VARIABLES.match(expression):
        found.add(at, f"has {{{expression}}}, which is no expression of a URI template")
        return
    for name in re.split(r"(?::[0-9]+|\*)?(?:,|\Z)", expression.lstrip("+#./;?&")):
        if name and name not in variables:
            found.add(at, f"has the variable {quoted(name)}, which uriVariables does not define")


def _check_scopes(form: _Object, at: str, document: _Object, found: Faults) -> None:
    if "scopes" not in form:
        return
    offered: set[object] | None = None
    for _, scheme in _objects(document.get("securityDefinitions")):
        if scheme.get("scheme") == "oauth2":
            offered = (offered or set[object]()) | {
                one for one in _several(scheme.get("scopes")) if isinstance(one, str)
            }
    scopes = form["scopes"]
    if offered is None:
        found.add(f"{at}/scopes", "needs a security scheme oauth2, and there is none")
        return
    for index, scope in enumerate(_several(scopes)):
        if isinstance(scope, str) and scope not in offered:
            where = f"{at}/scopes/{index}" if isinstance(scopes, list) else f"{at}/scopes"
            found.add(where, f"names {quoted(scope)}, which no security scheme offers")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _objects(value: object) -> Iterable[tuple[str, _Object]]:
    if not isinstance(value, Mapping):
        return
    for name, one in cast("_Object", value).items():
        if isinstance(one, Mapping):
            yield name, cast("_Object", one)


def _listed_objects(value: object) -> Iterable[tuple[int, _Object]]:
    if not isinstance(value, list):
        return
    for index, one in enumerate(cast("list[object]", value)):
        if isinstance(one, Mapping):
            yield index, cast("_Object", one)


def _several(value: object) -> list[object]:
    if value is None:
        return []
    return cast("list[object]", value) if isinstance(value, list) else [value]
