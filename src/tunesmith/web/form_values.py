"""What was typed -> the shortest config that says it. Pure functions.

The state of a form is a flat mapping from ``Field.id`` to what the person typed, holding only what they changed; text
boxes hold text. Everything from the browser is read with care: unknown ids and wrong types are dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from tunesmith.web.form_model import Field, leaves

State = Mapping[str, Any]
_KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")


@dataclass(frozen=True)
class Problem:
    """Why a typed value cannot be used: the key of a text, and what the text speaks of."""

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Reading:
    """A form, read: the config without what equals its default, and the fields that cannot be read."""

    config: dict[str, Any]
    problems: dict[str, Problem]


def read_values(fields: tuple[Field, ...], state: State) -> Reading:
    """The minimal config of a form's state. Fields of kinds that are not chosen do not count."""
    reading = Reading({}, {})
    reading.config = _read_fields(fields, state, reading.problems)
    return reading


def to_yaml(config: Mapping[str, Any]) -> str:
    """The config as YAML, in the order of the form; empty text for an empty config."""
    return yaml.safe_dump(dict(config), allow_unicode=True, sort_keys=False, width=100) if config else ""


def chosen_kind(union: Field, state: State) -> str | None:
    """The kind chosen in a union; None when none is."""
    value = state.get(union.id, union.default)
    return value if isinstance(value, str) and any(k.name == value for k in union.kinds) else None


def active(fields: tuple[Field, ...], state: State) -> list[Field]:
    """The fields that count now: those of the chosen kinds only."""
    found: list[Field] = []
    for f in fields:
        found.append(f)
        found += active(f.fields, state)
        if f.shape == "union":
            chosen = chosen_kind(f, state)
            found += [x for k in f.kinds if k.name == chosen for x in active(k.fields, state)]
    return found


def shown(field: Field, state: State) -> Any:
    """What the field's control holds: what was typed, else the default in the control's own terms."""
    if field.id in state:
        return state[field.id]
    return as_typed(field, field.default)


def as_typed(field: Field, value: Any) -> Any:
    """A config value as its control holds it: text for text boxes, the value itself for switches and choices."""
    if field.shape in ("switch", "choice", "union", "group"):
        return bool(value) if field.shape == "switch" else value
    if value is None or value == {} or value == []:
        return ""
    if field.shape == "lines":
        items = value if isinstance(value, list) else [value]
        return "\n".join(_line(i) for i in items)
    if field.shape == "yaml":
        return yaml.safe_dump(value, allow_unicode=True, sort_keys=False).removesuffix("...\n").strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    return number_text(value) if isinstance(value, float) else str(value)


def number_text(value: float) -> str:
    """A number as people write it: ``1e-05`` and ``0.0002``, not ``1.0``."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.12g}"


def tidy(fields: tuple[Field, ...], raw: Any) -> dict[str, Any]:
    """A state that came from a browser: only known fields, with values of the type their control makes."""
    if not isinstance(raw, Mapping):
        return {}
    state: dict[str, Any] = {}
    for f in leaves(fields):
        if f.id not in raw:
            continue
        value = raw[f.id]
        if f.shape in ("switch", "group"):
            ok = isinstance(value, bool)
        elif f.shape == "choice":
            ok = any(value == c and type(value) is type(c) for c in f.choices) or (value is None and f.nullable)
        elif f.shape == "union":
            ok = (value is None and f.nullable) or any(value == k.name for k in f.kinds)
        else:
            ok = isinstance(value, str) and len(value) <= 100_000
        if ok:
            state[f.id] = value
    return state


def from_config(fields: tuple[Field, ...], config: Mapping[str, Any]) -> dict[str, Any]:
    """The form's state that says what ``config`` says; keys that the form does not know are left out."""
    state: dict[str, Any] = {}
    for f in fields:
        if f.name not in config:
            continue
        value = config[f.name]
        if f.shape == "group":
            if f.nullable and (value is not None) != f.default:
                state[f.id] = value is not None
            if isinstance(value, (str, list)):  # a shorthand for the first property
                value = {f.fields[0].name: value} if f.fields else {}
            if isinstance(value, Mapping):
                state |= from_config(f.fields, value)
        elif f.shape == "union":
            chosen = value.get("kind") if isinstance(value, Mapping) else value
            if chosen != f.default or not f.has_default:
                state[f.id] = chosen
            for kind in f.kinds:
                if kind.name == chosen and isinstance(value, Mapping):
                    state |= from_config(kind.fields, value)
        elif not _equals_default(f, value):
            state[f.id] = as_typed(f, value)
    return tidy(fields, state)


def named_fields(fields: tuple[Field, ...], state: State, message: str) -> list[Field]:
    """The fields, among those that count, which a message of the command line names by their dotted key."""
    by_key = {f.key: f for f in active(fields, state)}
    found: dict[str, Field] = {}
    for quoted in re.findall(r"['\"`]([\w.\-]+)['\"`]", message) + [w for w in _KEY.findall(message) if "." in w]:
        parts = quoted.split(".")
        while parts:
            if ".".join(parts) in by_key:
                found[".".join(parts)] = by_key[".".join(parts)]
                break
            parts.pop()
    return list(found.values())


def _read_fields(fields: tuple[Field, ...], state: State, problems: dict[str, Problem]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for f in fields:
        if f.shape == "group":
            below = _read_fields(f.fields, state, problems) if _is_on(f, state) else {}
            if f.nullable and _is_on(f, state) != f.default:
                config[f.name] = below if _is_on(f, state) else None
            elif below:
                config[f.name] = below
        elif f.shape == "union":
            _read_union(f, state, problems, config)
        else:
            value, problem = read_one(f, shown(f, state))
            if problem is not None:
                problems[f.id] = problem
            elif value is not _LEFT_OUT and not _equals_default(f, value):
                config[f.name] = value
    return config


def _is_on(group: Field, state: State) -> bool:
    return bool(state.get(group.id, group.default)) if group.nullable else True


def _read_union(f: Field, state: State, problems: dict[str, Problem], config: dict[str, Any]) -> None:
    chosen = chosen_kind(f, state)
    if chosen is None:
        if f.must_be_filled:
            problems[f.id] = Problem("problem.required")
        elif f.has_default and f.default is not None:
            config[f.name] = None
        return
    below = next(_read_fields(k.fields, state, problems) for k in f.kinds if k.name == chosen)
    changed = not f.has_default or chosen != f.default
    if below:
        config[f.name] = {"kind": chosen, **below}
    elif changed:
        config[f.name] = chosen


class _LeftOut:
    pass


_LEFT_OUT = _LeftOut()


def read_one(f: Field, typed: Any) -> tuple[Any, Problem | None]:
    """A control's value as the config's; or what is wrong with it."""
    if f.shape in ("switch", "choice"):
        if typed is None and not f.nullable:
            return _LEFT_OUT, Problem("problem.required") if f.must_be_filled else None
        return typed, None
    text = typed.strip() if isinstance(typed, str) else ""
    if not text:
        return _empty(f)
    if f.shape == "text":
        return text, None
    if f.shape == "lines":
        return [_item(line.strip()) for line in text.splitlines() if line.strip()], None
    if f.shape == "yaml":
        try:
            return yaml.safe_load(text), None
        except yaml.YAMLError as error:
            return _LEFT_OUT, Problem("problem.yaml", {"reason": str(getattr(error, "problem", None) or error)})
    if f.shape == "scalar":
        value = _scalar(text)
        if text in f.choices or isinstance(value, (str, bool)):
            return (text if text in f.choices else value), None
        return _within(f, value)
    number = _number(text)
    if number is None or (f.shape == "integer" and not float(number).is_integer()):
        return _LEFT_OUT, Problem("problem.integer" if f.shape == "integer" else "problem.number")
    return _within(f, int(number) if f.shape == "integer" else number)


def _empty(f: Field) -> tuple[Any, Problem | None]:
    if f.shape == "lines" and f.default and not f.nullable:
        return [], None
    if f.nullable:
        return None, None
    return _LEFT_OUT, Problem("problem.required") if f.must_be_filled else None


def _within(f: Field, value: float) -> tuple[Any, Problem | None]:
    low, high = f.low, f.high
    if low is not None and (value < low.value or (low.open and value == low.value)):
        key = "problem.above" if low.open else "problem.at_least"
        return _LEFT_OUT, Problem(key, {"bound": number_text(low.value)})
    if high is not None and (value > high.value or (high.open and value == high.value)):
        key = "problem.below" if high.open else "problem.at_most"
        return _LEFT_OUT, Problem(key, {"bound": number_text(high.value)})
    return value, None


def _number(text: str) -> float | int | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _scalar(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    number = _number(text)
    return text if number is None else number


def _item(line: str) -> Any:
    """One line of a list: a mapping in braces, a number, or the text as it is."""
    if line.startswith("{") and line.endswith("}"):
        try:
            return yaml.safe_load(line)
        except yaml.YAMLError:
            return line
    return line


def _line(item: Any) -> str:
    return str(item) if not isinstance(item, (dict, list)) else _flow(item)


def _flow(item: Any) -> str:
    return yaml.safe_dump(item, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6).strip()


def _equals_default(f: Field, value: Any) -> bool:
    if not f.has_default:
        return value is None or value == []
    return bool(value == f.default) and isinstance(value, bool) == isinstance(f.default, bool)


def as_text(value: Any) -> str:
    """A value in one line, as YAML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return number_text(value) if isinstance(value, float) else str(value)
