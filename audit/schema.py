"""A reader of the part of JSON Schema that our own schemas use; whatever else they say is refused.

A keyword that is not checked would be a promise that nobody keeps, so an unknown one is an error.
Supported (JSON Schema 2020-12): type, const, enum, properties, required, additionalProperties
(false, or a schema), items, minimum, maximum, pattern, $ref into $defs, anyOf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NOTES = {"$schema", "$id", "$defs", "title", "description"}
_CHECKED = {
    "type", "const", "enum", "properties", "required", "additionalProperties", "items", "minimum",
    "maximum", "pattern", "$ref", "anyOf",
}  # fmt: skip
_KINDS: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def schema_problems(value: object, schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield ``place: what is wrong`` for everything that breaks a schema.

    Args:
        value: parsed JSON.
        schema: with its ``$defs``.

    Raises:
        ValueError: the schema uses a keyword that is not checked here.
    """
    yield from _problems(value, schema, "", schema.get("$defs", {}))


def _problems(
    value: object, schema: Mapping[str, Any], place: str, definitions: Mapping[str, Any]
) -> Iterator[str]:
    unknown = set(schema) - _NOTES - _CHECKED
    if unknown:
        raise ValueError(f"expected keywords that are checked, got {sorted(unknown)}")
    where = place or "the report"
    if "$ref" in schema:
        target = definitions[str(schema["$ref"]).removeprefix("#/$defs/")]
        yield from _problems(value, target, place, definitions)
    if "anyOf" in schema and not any(
        not list(_problems(value, option, place, definitions)) for option in schema["anyOf"]
    ):
        yield f"{where}: fits none of the forms that are allowed"
    if "type" in schema and not _is_of(value, schema["type"]):
        yield f"{where}: expected {schema['type']}, got {type(value).__name__}"
        return
    yield from _scalar_problems(value, schema, where)
    if isinstance(value, dict):
        yield from _object_problems(value, schema, place, definitions)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _problems(item, schema["items"], f"{place}[{index}]", definitions)


def _is_of(value: object, kinds: str | list[str]) -> bool:
    names = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _KINDS[name]) for name in names)


def _scalar_problems(value: object, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if "const" in schema and value != schema["const"]:
        yield f"{where}: expected {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: expected one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            yield f"{where}: expected at least {schema['minimum']}"
        if value > schema.get("maximum", value):
            yield f"{where}: expected at most {schema['maximum']}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{where}: expected text of the form {schema['pattern']}"


def _object_problems(
    value: Mapping[str, object],
    schema: Mapping[str, Any],
    place: str,
    definitions: Mapping[str, Any],
) -> Iterator[str]:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{place or 'the report'}: {name} is missing"
    further = schema.get("additionalProperties", {})
    for name, item in value.items():
        inner = f"{place}.{name}" if place else name
        if name in known:
            yield from _problems(item, known[name], inner, definitions)
        elif further is False:
            yield f"{inner}: not part of the schema"
        elif isinstance(further, Mapping):
            yield from _problems(item, further, inner, definitions)
