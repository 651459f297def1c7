"""The JSON Schema of a config: what the page draws its form from and editors complete with."""

from __future__ import annotations

from typing import Any

from tunesmith.config.base import Config

Node = dict[str, Any]


def schema(cls: type[Config]) -> Node:
    """JSON Schema (draft 2020-12) of ``cls``: ``description`` is the English help, ``zh`` the Chinese, ``basic`` marks
    the fields of the first screen. What a person may write short is part of it: ``model: name``, ``method: kind``, one
    text in place of a list of texts, one text in place of a mapping in a list (``short`` in its class's schema)."""
    result = cls.model_json_schema()
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    defs: dict[str, Node] = result.get("$defs", {})
    for part in defs.values():
        for node in part.get("properties", {}).values():
            _allow_one_text(node)
            _allow_short_items(node, defs)
            _allow_kind_alone(node, defs)
    for part in defs.values():
        part.pop("short", None)
    for name, field in cls.model_fields.items():
        node = result["properties"][name]
        if "oneOf" in node:
            _allow_kind_alone(node, defs)
            continue
        members = [{"$ref": node.pop("$ref")}] if "$ref" in node else []
        if not members:
            continue
        kinds = [_kind(defs[_name(m)]) for m in members]
        shorthand = getattr(field.annotation, "shorthand", None)
        if all(kinds):
            node["anyOf"] = [{"enum": kinds}, *members]
        elif shorthand:
            node["anyOf"] = [*_texts(defs[_name(members[0])]["properties"][shorthand]), *members]
        else:
            node["$ref"] = members[0]["$ref"]
    return result


def _allow_one_text(node: Node) -> None:
    """A list of texts may be written as one text (the configs turn it into a list)."""
    if node.get("type") == "array" and node.get("items") == {"type": "string"}:
        array = {key: node.pop(key) for key in ("type", "items", "minItems", "maxItems") if key in node}
        node["anyOf"] = [array, {"type": "string"}]


def _allow_short_items(node: Node, defs: dict[str, Node]) -> None:
    """A list of mappings that a text is short for may hold texts too, and be written as one text or one mapping."""
    items = node.get("items", {})
    if node.get("type") == "array" and "$ref" in items and "short" in defs[_name(items)]:
        array = {key: node.pop(key) for key in ("type", "items", "minItems", "maxItems") if key in node}
        array["items"] = {"anyOf": [{"type": "string"}, items]}
        node["anyOf"] = [array, {"type": "string"}, items]


def _allow_kind_alone(node: Node, defs: dict[str, Node]) -> None:
    """A union of configs told apart by ``kind``, at any depth and nullable or not, may be written as the kind alone."""
    choices: list[Node] = node.get("anyOf", [node])
    union = next((choice for choice in choices if "oneOf" in choice), None)
    if union is None:
        return
    members = union.pop("oneOf")
    union.pop("discriminator", None)
    rest = [choice for choice in choices if choice is not union] if union is not node else []
    node["anyOf"] = [{"enum": [_kind(defs[_name(m)]) for m in members]}, *members, *rest]


def _texts(node: Node) -> list[Node]:
    """The text forms that the field behind a shorthand takes."""
    return [form for form in node["anyOf"] if "$ref" not in form] if "anyOf" in node else [{"type": node["type"]}]


def _kind(part: Node) -> str | None:
    found: str | None = part.get("properties", {}).get("kind", {}).get("const")
    return found


def _name(member: Node) -> str:
    return str(member["$ref"]).rpartition("/")[2]
