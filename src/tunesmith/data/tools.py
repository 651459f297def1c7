"""Tool descriptions and tool calls, as JSON text or as values -> the one form chat templates take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.columns import found, not_text
from tunesmith.data.strict_json import inner

Call = dict[str, Any]
CALL_HINT = 'expected {"name": "…", "arguments": {…}}, or a list of those'


def read_tools(value: Any, place: str) -> tuple[dict[str, Any], ...]:
    """The tools of a row: a list of descriptions or its JSON text, each ``{"name", "description", "parameters"}`` or already
    ``{"type": "function", "function": {…}}``. Null, empty text and an empty list are no tools. Raises DataError."""
    hint = 'expected a list such as [{"name": "weather", "description": "…", "parameters": {…}}]'
    if isinstance(value, str):
        value = inner(value, place, hint) if value.strip() else None
    if value is None:
        return ()
    tools: list[dict[str, Any]] = []
    for i, tool in enumerate(value if isinstance(value, list) else [value]):
        where = f"{place}, tool {i + 1}"
        tool = inner(tool, where, hint) if isinstance(tool, str) else tool
        if not isinstance(tool, dict):
            raise DataError(f"{where}: expected a description, found {found(tool)}", hint=hint)
        function = tool if tool.get("function") is None else tool["function"]
        if tool.get("type") not in (None, "function") and function is tool and "parameters" not in tool:
            raise DataError(
                f"{where}: tools of the type {str(tool['type'])!r} cannot be described to a model", hint=hint
            )
        if not isinstance(function, dict) or not _is_name(function.get("name")):
            raise DataError(f"{where}: it has no name: found {found(tool)}", hint=hint)
        function = {k: v for k, v in function.items() if not (function is tool and k in ("type", "function"))}
        tools.append({"type": "function", "function": function})
    return tuple(tools)


def read_calls(value: Any, place: str) -> tuple[Call, ...]:
    """Tool calls: one or a list, or their JSON text; arguments as an object or its JSON text. Raises DataError."""
    if isinstance(value, str):
        value = inner(value, place, CALL_HINT)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise DataError(f"{place}: the list of tool calls is empty", hint=CALL_HINT)
    return tuple(_call(call, place if len(calls) == 1 else f"{place}, call {i + 1}") for i, call in enumerate(calls))


def _call(value: Any, place: str) -> Call:
    function = value.get("function") if isinstance(value, dict) and value.get("function") is not None else value
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise DataError(f"{place}: not a tool call: {found(value)}", hint=CALL_HINT)
    call: Call = {"type": "function"}
    number = value.get("id")
    if number is not None:
        if not isinstance(number, str):
            raise not_text(number, f"{place}: the id of a tool call")
        call["id"] = number
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = inner(arguments, f"{place}, arguments", CALL_HINT) if arguments.strip() else None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise DataError(f"{place}: the arguments should be an object, found {found(arguments)}", hint=CALL_HINT)
    call["function"] = {"name": function["name"], "arguments": arguments}
    return call


def turn_calls(turn: Mapping[str, Any], place: str) -> tuple[Call, ...]:
    """The calls under the keys ``tool_calls`` or ``function_call`` of a turn; null and an empty list are none."""
    several, one = turn.get("tool_calls"), turn.get("function_call")
    if several and one:
        raise DataError(f"{place}: it has both 'tool_calls' and 'function_call'", hint="keep 'tool_calls'")
    if several is None or several == [] or several == "":
        several = one
    return () if several is None else read_calls(several, place)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
