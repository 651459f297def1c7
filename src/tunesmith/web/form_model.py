"""JSON Schema -> what the form draws. Pure functions; no setting is known here by name.

What a schema can say and this module reads: ``description`` (English help), ``zh`` (Chinese help), ``label``, ``basic`` (first
screen), ``default``, numeric bounds, ``enum``/``const``, ``$ref``, nullable and other ``anyOf``, unions of objects told
apart by a constant ``kind``, lists, objects. What it cannot draw becomes a box of YAML, so that no setting is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Shape = Literal["text", "number", "integer", "scalar", "switch", "choice", "lines", "yaml", "group", "union"]
Node = Mapping[str, Any]
Path = tuple[str, ...]


@dataclass(frozen=True)
class Bound:
    """An end of a numeric range; ``open``: the end itself is not allowed."""

    value: float
    open: bool = False


@dataclass(frozen=True)
class Kind:
    """One member of a union."""

    name: str
    help: Mapping[str, str]
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Field:
    """One setting, group of settings or union, as the form draws it."""

    id: str
    """Name in the form's state, unique also between the kinds of a union: ``train.lr``, ``method[lora].rank``."""
    path: Path
    """Where the value stands in the YAML."""
    shape: Shape
    help: Mapping[str, str]
    """Help text by language."""
    label: Mapping[str, str] | None = None
    """What it is called, by language; None where its key is its name."""
    basic: bool = False
    required: bool = False
    nullable: bool = False
    has_default: bool = False
    default: Any = None
    """For a union: the name of the default kind."""
    choices: tuple[Any, ...] = ()
    low: Bound | None = None
    high: Bound | None = None
    fields: tuple[Field, ...] = ()
    kinds: tuple[Kind, ...] = ()

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def must_be_filled(self) -> bool:
        """Nothing can start without a value here."""
        return self.required and not self.has_default and not self.nullable and self.shape not in ("group", "switch")


def read_form(schema: Node) -> tuple[Field, ...]:
    """The top-level fields of a config's JSON Schema, in its order."""
    return _properties(schema, _Reader(schema.get("$defs", {})), (), "", {})


def leaves(fields: tuple[Field, ...]) -> Iterator[Field]:
    """Every field below, groups left out, unions and the fields of all their kinds included."""
    for field in fields:
        if field.shape != "group" or field.nullable:
            yield field
        yield from leaves(field.fields)
        for kind in field.kinds:
            yield from leaves(kind.fields)


@dataclass(frozen=True)
class _Reader:
    definitions: Mapping[str, Node]
    seen: tuple[str, ...] = ()

    def resolve(self, node: Node) -> tuple[Node, _Reader]:
        """``node`` with its ``$ref`` followed (what stands beside the reference wins) and the trail of names."""
        reader = self
        while "$ref" in node or len(node.get("allOf", ())) == 1:
            if "$ref" in node:
                name = str(node["$ref"]).rpartition("/")[2]
                if name in reader.seen:
                    return {"x-circle": True}, reader
                target: Node = reader.definitions.get(name, {})
                reader = replace(reader, seen=(*reader.seen, name))
            else:
                target = node["allOf"][0]
            node = {**target, **{k: v for k, v in node.items() if k not in ("$ref", "allOf")}}
        return node, reader


def _help(node: Node) -> dict[str, str]:
    english = str(node.get("description", "")).strip()
    return {"en": english, "zh": str(node.get("zh", "")).strip() or english}


def _own_help(node: Node) -> dict[str, str]:
    """Help without one language standing in for another (a class's own text mostly has English only)."""
    return {"en": str(node.get("description", "")).strip(), "zh": str(node.get("zh", "")).strip()}


def _properties(node: Node, reader: _Reader, path: Path, prefix: str, given: Mapping[str, Any]) -> tuple[Field, ...]:
    required = node.get("required", ())
    return tuple(
        _field(child, reader, (*path, name), f"{prefix}{name}", name in required and name not in given, given)
        for name, child in node.get("properties", {}).items()
        if not (name == "kind" and "const" in child)
    )


def _field(node: Node, reader: _Reader, path: Path, id: str, required: bool, given: Mapping[str, Any]) -> Field:
    """One property. ``given``: defaults that the parent's own default holds, which win over this property's."""
    node, reader = reader.resolve(node)
    name = path[-1]
    has_default = name in given or "default" in node
    default = given[name] if name in given else node.get("default")
    branches, nullable = _branches(node, reader)
    plain = Field(
        id=id, path=path, shape="yaml", help=_help(node), label=node.get("label"), basic=bool(node.get("basic")), required=required,
        nullable=nullable, has_default=has_default, default=default,
    )  # fmt: skip
    if any("x-circle" in branch for branch, _ in branches):
        return plain

    inside = _item_titles([b for b, _ in branches], reader)
    branches = [(b, r) for b, r in branches if b.get("type") != "object" or b.get("title") not in inside]
    objects = [(b, r) for b, r in branches if b.get("type") == "object" and b.get("properties")]
    kinds = [(b, r) for b, r in objects if "const" in b["properties"].get("kind", {})]
    if kinds:
        return _union(plain, kinds, node)
    if objects:  # text or a list beside an object is a shorthand for it: the object is drawn
        return _group(plain, *objects[0])
    return _simple(plain, [b for b, _ in branches])


def _item_titles(branches: list[Node], reader: _Reader) -> set[Any]:
    """The objects that a list among the branches may hold: one of them alone is short for a list of one."""
    items = [b.get("items", {}) for b in branches if b.get("type") == "array"]
    options = [option for item in items for option in item.get("anyOf", [item])]
    return {reader.resolve(option)[0].get("title") for option in options if "$ref" in option}


def _branches(node: Node, reader: _Reader) -> tuple[list[tuple[Node, _Reader]], bool]:
    """The alternatives of a node, flattened, without null; and whether null was among them."""
    options = node.get("anyOf") or node.get("oneOf")
    if not options:
        return [(node, reader)], False
    found: list[tuple[Node, _Reader]] = []
    nullable = False
    for option in options:
        resolved, trail = reader.resolve(option)
        if resolved.get("type") == "null":
            nullable = True
            continue
        below, null = _branches(resolved, trail)
        found += below
        nullable = nullable or null
    return found, nullable


def _union(field: Field, kinds: list[tuple[Node, _Reader]], node: Node) -> Field:
    default = field.default
    chosen = default.get("kind") if isinstance(default, Mapping) else default
    members = []
    for branch, reader in kinds:
        name = str(branch["properties"]["kind"]["const"])
        given = default if isinstance(default, Mapping) and name == chosen else {}
        members.append(
            Kind(name, _own_help(branch), _properties(branch, reader, field.path, f"{field.id}[{name}].", given))
        )
    known = chosen in {m.name for m in members}
    basic = field.basic or any(leaf.basic for m in members for leaf in leaves(m.fields))
    return replace(
        field,
        shape="union",
        kinds=tuple(members),
        basic=basic or (field.required and not known),
        has_default=known or (field.has_default and default is None and field.nullable),
        default=chosen if known else None,
    )


def _group(field: Field, branch: Node, reader: _Reader) -> Field:
    given: Mapping[str, Any] = field.default if isinstance(field.default, Mapping) else {}
    if isinstance(field.default, (str, list)):  # a shorthand stands for the object's first property
        first = next(iter(branch["properties"]))
        given = {first: field.default}
    fields = _properties(branch, reader, field.path, f"{field.id}.", given)
    if field.basic and not any(leaf.basic for leaf in leaves(fields)):
        fields = tuple(_as_basic(f) for f in fields)
    help = field.help if any(field.help.values()) else _help(branch)
    on = field.default is not None
    return replace(field, shape="group", fields=fields, help=help, default=on if field.nullable else None)


def _as_basic(field: Field) -> Field:
    return replace(field, basic=True, fields=tuple(_as_basic(f) for f in field.fields))


def _simple(field: Field, branches: list[Node]) -> Field:
    basic = field.basic or field.must_be_filled
    types = {b.get("type") for b in branches}
    choices = [c for b in branches for c in (b["enum"] if "enum" in b else [b["const"]] if "const" in b else [])]
    if choices and all("enum" in b or "const" in b or b.get("type") == "boolean" for b in branches):
        if "boolean" in types:
            choices += [c for c in (True, False) if not any(c is known for known in choices)]
        return replace(field, shape="choice", choices=tuple(choices), basic=basic)
    if types == {"boolean"}:
        if field.nullable:
            return replace(field, shape="choice", choices=(True, False), basic=basic)
        return replace(field, shape="switch", basic=basic)
    if types <= {"integer", "number"} and types:
        shape: Shape = "integer" if types == {"integer"} else "number"
        low, high = _bounds(branches)
        return replace(field, shape=shape, low=low, high=high, basic=basic)
    if types == {"string"} and not choices:
        return replace(field, shape="text", basic=basic)
    if "array" in types and types <= {"array", "string"} and _takes_text(branches):
        return replace(field, shape="lines", basic=basic)
    if types <= {"string", "integer", "number", "boolean"} and types:
        low, high = _bounds([b for b in branches if b.get("type") in ("integer", "number")])
        return replace(field, shape="scalar", choices=tuple(choices), low=low, high=high, basic=basic)
    return replace(field, basic=basic)


def _takes_text(branches: list[Node]) -> bool:
    """Whether every list among the branches takes plain words, numbers or shorthands as items."""
    for branch in branches:
        if branch.get("type") != "array":
            continue
        items = branch.get("items", {})
        options = items.get("anyOf") or items.get("oneOf") or [items]
        if not any(o.get("type") in ("string", "integer", "number") for o in options):
            return False
    return True


def _bounds(branches: list[Node]) -> tuple[Bound | None, Bound | None]:
    low = high = None
    for b in branches:
        if "minimum" in b:
            low = Bound(b["minimum"])
        if "exclusiveMinimum" in b:
            low = Bound(b["exclusiveMinimum"], open=True)
        if "maximum" in b:
            high = Bound(b["maximum"])
        if "exclusiveMaximum" in b:
            high = Bound(b["exclusiveMaximum"], open=True)
    return low, high
