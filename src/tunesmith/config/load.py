"""From YAML text and ``key.sub=value`` overrides to a validated config, with messages that name file, line and key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tunesmith.config.base import Config
from tunesmith.config.errors import ConfigError
from tunesmith.config.files import write_atomic
from tunesmith.config.plugins import suggestion

C = TypeVar("C", bound=Config)
Key = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-4`` as a number, as everybody means it (YAML 1.1 wants ``1.0e-4``)."""


_Loader.yaml_implicit_resolvers = {  # a date stays the text it was written as
    first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


class Source:
    """Where the values of a config came from, for messages: the file and the line of each key."""

    def __init__(self, name: str, lines: Mapping[Key, int], overridden: Sequence[Key] = ()) -> None:
        self.name = name
        self.lines = dict(lines)
        self.overridden = frozenset(overridden)

    def place(self, key: Key) -> str:
        """``file:line`` of the key, or of its nearest parent that the file has."""
        if any(key[:n] in self.overridden for n in range(1, len(key) + 1)):
            return "command line"
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.name}:{self.lines[key]}" if key in self.lines else self.name


def parse_yaml(text: str, name: str) -> tuple[dict[str, Any], Source]:
    """YAML text as a mapping and the line of every key. Raises ConfigError (syntax, duplicate key, not a mapping)."""
    lines: dict[Key, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return {}, Source(name, {})
            _collect_lines(node, (), lines, name)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = "check the indentation (spaces, no tabs), quotes, and that every key is followed by ': '"
        raise ConfigError(f"{where}: not valid YAML: {problem}", hint=hint) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected keys such as 'model: …' and 'data: …', found {_kind(value)}")
    return value, Source(name, lines)


def _collect_lines(node: yaml.Node, path: Key, lines: dict[Key, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                raise ConfigError(f"{name}:{line}: the key {key!r} is there twice (first on line {seen[key]})")
            seen[key] = line
            lines[(*path, key)] = line
            _collect_lines(value_node, (*path, key), lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            lines[(*path, i)] = child.start_mark.line + 1
            _collect_lines(child, (*path, i), lines, name)


def read_yaml(path: Path) -> tuple[dict[str, Any], Source]:
    """A YAML file as a mapping and its lines. Raises ConfigError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint="give the path of a YAML config, or key=value pairs") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, expected a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    return parse_yaml(text, str(path))


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``key.sub=value`` on top of ``values``; values are YAML (``train.lr=1e-4``, ``data=[a, b]``). Raises ConfigError.

    Setting a key below a plain string (``method: lora`` and ``method.rank=8``) keeps the string as its ``kind``.
    """
    result: dict[str, Any] = _copy(values)
    for text in overrides:
        key, equals, raw = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(
                f"{text!r} is not an override", hint="write key=value or key.sub=value, for example train.lr=1e-4"
            )
        try:
            value = yaml.load(raw, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
        except yaml.YAMLError:
            value = raw
        at = result
        for part in parts[:-1]:
            below = at.get(part)
            if below is None:
                below = at[part] = {}
            elif isinstance(below, str):
                below = at[part] = {"kind": below}
            elif not isinstance(below, dict):
                raise ConfigError(f"{text!r}: {part!r} is {_kind(below)}, it has no keys below it")
            at = below
        at[parts[-1]] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def validate(cls: type[C], values: Mapping[str, Any], source: Source | None = None) -> C:
    """``values`` as a config of class ``cls``. Raises ConfigError that names every wrong key, its place and the mend."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise explain(cls, error, source) from None


def explain(cls: type[BaseModel], error: ValidationError, source: Source | None = None) -> ConfigError:
    """A pydantic error as one readable message."""
    parts: list[str] = []
    hints: list[str] = []
    details = error.errors()
    for detail in details:
        inner = (d for d in details if d is not detail and d["loc"][: len(detail["loc"])] == detail["loc"])
        if detail["type"] == "too_short" and any(inner):  # entries that are wrong themselves are not counted as entries
            continue
        unknown = detail["type"] == "extra_forbidden"
        location, classes = _locate(cls, detail["loc"], keep_last=unknown)
        key = ".".join(map(str, location)) or "config"
        place = f"{source.place(location)}: " if source is not None else ""
        kind, context = detail["type"], detail.get("ctx", {})
        if unknown:
            known = sorted({name for c in classes for name in c.model_fields})
            parts.append(f"{place}unknown key {key!r}")
            hints.append(suggestion(str(location[-1]), known))
        elif kind == "missing":
            parts.append(f"{place}{key!r} is missing")
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            expected = [t.strip().strip("'") for t in str(context.get("expected_tags", "")).split(",") if t.strip()]
            given = detail.get("input")
            word = given.get("kind") if isinstance(given, dict) else given
            parts.append(f"{place}{key!r}: there is no kind {word!r}")
            if expected:
                near = suggestion(str(word), expected)
                hints.append(near if near.startswith("known") else f"{near} known: {', '.join(expected)}")
        elif kind == "literal_error":
            parts.append(f"{place}{key!r}: expected {context.get('expected')}, got {detail['input']!r}")
            choices = [c.strip().strip("'") for c in str(context.get("expected", "")).replace(" or ", ", ").split(",")]
            hints.append(suggestion(str(detail["input"]), choices))
        else:
            plain = _PLAIN.get(kind)
            words = plain.format(**context) if plain else detail["msg"].removeprefix("Value error, ")
            got = "" if kind == "value_error" else f", got {_short(detail['input'])}"
            parts.append(f"{place}{key!r}: {words}{got}")
            if "number" in words and isinstance(detail["input"], str):
                hints.append("numbers are written without quotes or units, for example 1e-4")
    return ConfigError("\n".join(parts), hint="; ".join(dict.fromkeys(h for h in hints if h)) or None)


_PLAIN = {
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number (an integer)",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "greater_than": "expected more than {gt:g}",
    "greater_than_equal": "expected at least {ge:g}",
    "less_than": "expected less than {lt:g}",
    "less_than_equal": "expected at most {le:g}",
    "string_too_short": "expected at least {min_length} characters",
    "string_too_long": "expected at most {max_length} characters",
    "too_short": "expected at least {min_length} entries",
    "string_pattern_mismatch": "expected text of the form {pattern}",
    "model_type": "expected keys below it",
}
"""pydantic's kinds of error in our words."""


def _locate(
    cls: type[BaseModel], location: tuple[str | int, ...], *, keep_last: bool
) -> tuple[Key, list[type[BaseModel]]]:
    """Pydantic's location as the person wrote it, and the config classes there.

    Pydantic adds the kinds of unions (``('method', 'lora', 'rnk')``) and the names of validators; walking the classes
    along the location tells them from keys. ``keep_last``: the last part is a key that no class knows.
    """
    kept: list[str | int] = []
    current: list[type[BaseModel]] = [cls]
    for i, part in enumerate(location):
        fields = [c.model_fields[str(part)] for c in current if str(part) in c.model_fields]
        if fields:
            kept.append(part)
            current = _classes_in(fields[0].annotation)
        elif isinstance(part, int) or (keep_last and i == len(location) - 1):
            kept.append(part)
        else:
            current = [
                c for c in current if "kind" in c.model_fields and c.model_fields["kind"].default == part
            ] or current
    return tuple(kept), current


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for arg in getattr(annotation, "__args__", ()):
        found += _classes_in(arg)
    return found


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def save(config: Config, path: Path) -> None:
    """The fully resolved config as YAML, atomically; ``validate`` of the file gives an equal config."""
    write_atomic(path, dump(config))


def dump(config: Config) -> str:
    """The config as YAML text, fields in the order of the class."""
    return yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True, sort_keys=False, width=100)
