"""What Ollama gives a template for a conversation: its Messages, Tools, System, Think.

Messages are dicts as everywhere (``role``, ``content``, ``reasoning_content``, ``tool_calls``, ``name``, ``tool_call_id``). Of a
tool's definition Ollama keeps only the fields below; arguments of calls and properties of tools come as maps, whose keys
Go goes through in alphabetical order. Source: ``collate`` and ``convert…ForTemplate`` in Ollama's ``template/template.go`` and the
types of ``api/types.go``, as of 0.24.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tunesmith.export.go_text_values import NamedList, NamedMap, Struct

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class Message(Struct):
    TYPE: ClassVar[str] = "message"


class ToolCall(Struct):
    TYPE: ClassVar[str] = "template.templateToolCall"


class CallFunction(Struct):
    TYPE: ClassVar[str] = "template.templateToolCallFunction"


class Arguments(NamedMap):
    TYPE: ClassVar[str] = "template.templateArgs"


class ToolList(NamedList):
    TYPE: ClassVar[str] = "template.templateTools"


class Tool(Struct):
    TYPE: ClassVar[str] = "template.templateTool"
    JSON: ClassVar[Mapping[str, str]] = {"Type": "type", "Items": "items?", "Function": "function"}


class Function(Struct):
    TYPE: ClassVar[str] = "template.templateToolFunction"
    JSON: ClassVar[Mapping[str, str]] = {"Name": "name", "Description": "description", "Parameters": "parameters"}


class Parameters(Struct):
    TYPE: ClassVar[str] = "template.templateToolFunctionParameters"
    JSON: ClassVar[Mapping[str, str]] = {
        "Type": "type", "Defs": "$defs?", "Items": "items?", "Required": "required?", "Properties": "properties",
    }  # fmt: skip


class Properties(NamedMap):
    TYPE: ClassVar[str] = "template.templateProperties"


class Property(Struct):
    TYPE: ClassVar[str] = "api.ToolProperty"
    JSON: ClassVar[Mapping[str, str]] = {
        "AnyOf": "anyOf?", "Type": "type?", "Items": "items?", "Description": "description?", "Enum": "enum?",
        "Properties": "properties?",
    }  # fmt: skip


class PropertyType(NamedList):
    TYPE: ClassVar[str] = "api.PropertyType"
    ALONE: ClassVar[bool] = True


def values(messages: Messages, tools: Tools = (), think: bool | None = None) -> dict[str, Any]:
    """The data of one request; ``think`` None: the request does not say.

    Neighbours of one role are merged with an empty line between (but not results of tools), system prompts are joined.
    """
    collated: list[Message] = []
    for message in messages:
        role, content = str(message["role"]), str(message.get("content") or "")
        if collated and collated[-1]["Role"] == role != "tool":
            collated[-1]["Content"] += "\n\n" + content
        else:
            collated.append(_message(role, content, message))
    system = "\n\n".join(str(m.get("content") or "") for m in messages if m["role"] == "system")
    return {
        "System": system,
        "Messages": collated,
        "Tools": ToolList(map(_tool, tools)),
        "Response": "",
        "Think": bool(think),
        "ThinkLevel": "",
        "IsThinkSet": think is not None,
    }


def _message(role: str, content: str, message: Mapping[str, Any]) -> Message:
    thinking = next((message[key] for key in ("thinking", "reasoning_content", "reasoning") if message.get(key)), "")
    return Message(
        Role=role,
        Content=content,
        Thinking=thinking,
        Images=[],
        ToolCalls=[_call(call) for call in message.get("tool_calls") or ()],
        ToolName=str(message.get("tool_name") or message.get("name") or ""),
        ToolCallID=str(message.get("tool_call_id") or ""),
    )


def _call(call: Mapping[str, Any]) -> ToolCall:
    function = call["function"]
    arguments = function.get("arguments") or {}
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    return ToolCall(
        ID=str(call.get("id") or ""),
        Function=CallFunction(Index=0, Name=function["name"], Arguments=Arguments(_numbers(given))),
    )


def _tool(tool: Mapping[str, Any]) -> Tool:
    function = tool["function"]
    parameters = function.get("parameters") or {}
    kept = Parameters(
        Type=parameters.get("type") or "",
        Defs=_numbers(parameters.get("$defs")),
        Items=_numbers(parameters.get("items")),
        Required=list(parameters.get("required") or ()),
        Properties=_properties(parameters.get("properties")) or Properties(),
    )
    described = Function(Name=function["name"], Description=function.get("description") or "", Parameters=kept)
    return Tool(Type=tool.get("type") or "", Items=None, Function=described)


def _properties(properties: Mapping[str, Any] | None) -> Properties | None:
    return None if properties is None else Properties({name: _property(p) for name, p in properties.items()})


def _property(given: Mapping[str, Any]) -> Property:
    kind = given.get("type") or []
    return Property(
        AnyOf=[_property(choice) for choice in given.get("anyOf") or ()],
        Type=PropertyType([kind] if isinstance(kind, str) else kind),
        Items=_numbers(given.get("items")),
        Description=given.get("description") or "",
        Enum=_numbers(list(given.get("enum") or ())),
        Properties=_properties(given.get("properties")),
    )


def _numbers(value: Any) -> Any:
    """JSON as Go reads it into ``any``: every number is a float64."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
