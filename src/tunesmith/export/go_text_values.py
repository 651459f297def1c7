"""Go's values as the templates see them, and how Go writes them: as JSON, with ``%v``, ``%q`` and ``%T``.

Text is ``str``, numbers from JSON are ``float`` (Go's float64), whole numbers of the template ``int``. Sources: the manuals
of encoding/json (a map's keys are sorted; ``<``, ``>`` and ``&`` become ``\\u003c`` …), strconv.Quote and fmt.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

from tunesmith.export.go_text_tree import GoTemplateError

FLOAT_V = 6
"""From this power of ten on ``%v`` writes a number with an exponent; JSON does from 21 on."""


class Struct(dict[str, Any]):
    """A Go struct: asking for a field it has not is an error, where a plain dict (a Go map) gives nothing.

    ``JSON`` names its fields in JSON, in order; a name that ends in ``?`` is left out when the value is empty.
    """

    TYPE: ClassVar[str] = "struct"
    JSON: ClassVar[Mapping[str, str]] = {}


class NamedMap(dict[str, Any]):
    """A map of a type that has a name and prints itself as JSON."""

    TYPE: ClassVar[str] = "map"


class NamedList(list[Any]):
    """A slice of a type that has a name and prints itself as JSON. ``ALONE``: one element alone is written without brackets."""

    TYPE: ClassVar[str] = "slice"
    ALONE: ClassVar[bool] = False


def true(value: Any) -> bool:
    """Go's truth: false, 0, the empty string, list and map, and nothing are false; a struct is always true."""
    return True if isinstance(value, Struct) else bool(value)


def printed(value: Any) -> str:
    """As Go prints it with ``%v``. Raises GoTemplateError for what prints in Go's own notation."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, float):
        return _float(value, FLOAT_V, -4)
    if isinstance(value, (NamedMap, NamedList)):
        return as_json(value)
    raise GoTemplateError(f"printing a {type_name(value)} is not implemented here; is `json` meant?")


def type_name(value: Any) -> str:
    """As Go prints it with ``%T``."""
    if isinstance(value, (Struct, NamedMap, NamedList)):
        return value.TYPE
    names = {str: "string", bool: "bool", int: "int", float: "float64", dict: "map[string]interface {}"}
    names |= {list: "[]interface {}", tuple: "[]interface {}", type(None): "<nil>"}
    return names.get(type(value), type(value).__name__)


def quoted(text: str) -> str:
    """As Go quotes it with ``%q``: like JSON for what can be printed, ``<``, ``>`` and ``&`` included."""
    return '"' + "".join(map(_quoted, text)) + '"'


_SHORT = {sign: "\\" + letter for sign, letter in zip('"\\\a\b\f\n\r\t\v', '"\\abfnrtv')}


def _quoted(sign: str) -> str:
    if sign in _SHORT:
        return _SHORT[sign]
    if sign == " " or unicodedata.category(sign)[0] in "LMNPS":
        return sign
    code = ord(sign)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def as_json(value: Any) -> str:
    """As Go's ``json.Marshal`` writes it."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return _json_text(value)
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, float):
        return _float(value, 21, -6)
    if isinstance(value, Struct):
        named = ((name.rstrip("?"), name.endswith("?"), value[field]) for field, name in value.JSON.items())
        fields = [f"{_json_text(name)}:{as_json(item)}" for name, optional, item in named if item or not optional]
        return "{" + ",".join(fields) + "}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_json_text(key)}:{as_json(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, NamedList) and value.ALONE and len(value) == 1:
        return as_json(value[0])
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(as_json, value)) + "]"
    raise GoTemplateError(f"no JSON for a {type_name(value)}")


def _json_text(text: str) -> str:
    plain = json.dumps(text, ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        plain = plain.replace(sign, f"\\u{ord(sign):04x}")
    return plain


def _float(value: float, large: int, small: int) -> str:
    """The shortest digits that give the same number, with an exponent from 1e``large`` on and below 1e``small``."""
    if value == 0:
        return "0"
    number = Decimal(repr(value)).normalize()
    sign, digits, _ = number.as_tuple()
    exponent = number.adjusted()
    if small <= exponent < large:
        return f"{number:f}"
    written = "".join(map(str, digits))
    mantissa = ("-" if sign else "") + written[0] + ("." + written[1:] if len(written) > 1 else "")
    width = 2 if large == FLOAT_V else 1
    return f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):0{width}d}"
