"""The Modelfile: what Ollama is told about a model beside its weights. Written, read back, and checked.

Ollama's parser (``parser/parser.go``) has two properties that decide how text is quoted here:

* There are no escapes. A value is bare, in ``"…"``, or in triple quotes, and a quoted value ends where a *line* ends in
  the closing quotes. So text holding a double quote needs triple quotes, and text in which a line, other than the last,
  ends in three double quotes cannot be written at all.
* Every character that Go's ``strconv.IsPrint`` does not call printable is dropped without a word, other than line
  breaks, tabs and plain spaces: zero-width joiners of emoji, no-break spaces, the ideographic space of Chinese text.

What cannot be written is refused (`render`), never changed; sending the same model over the network has no such limits.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.ollama_parameters import Value, checked_parameters, from_text

ROLES = ("system", "user", "assistant")
TRIPLE = '"""'


@dataclass(frozen=True)
class Modelfile:
    """One Ollama model. ``from_``: the GGUF's path (relative to the Modelfile), or the name of a model Ollama has.

    ``template`` is a Go text/template; None leaves the choice to the server. ``parameters`` are checked on construction
    (ExportError) and hold the types of `checked_parameters`. ``messages`` are example turns put before every
    conversation. ``adapters``: GGUF LoRAs (paths relative to the Modelfile) that are put on it. An empty text means the same as None, as it does to Ollama.
    """

    from_: str
    template: str | None = None
    system: str | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    license: str | None = None
    messages: Sequence[Mapping[str, str]] = ()
    adapters: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.from_.strip():
            raise ExportError("a Modelfile needs a FROM", hint="give the path of the GGUF, or a model's name")
        for name in ("template", "system", "license"):
            object.__setattr__(self, name, getattr(self, name) or None)
        object.__setattr__(self, "parameters", checked_parameters(self.parameters))
        messages = tuple({"role": m["role"], "content": m["content"]} for m in self.messages)
        for message in messages:
            if message["role"] not in ROLES:
                raise ExportError(f"a Modelfile message has the role {message['role']!r}, it must be one of {ROLES}")
        object.__setattr__(self, "messages", messages)
        object.__setattr__(self, "adapters", tuple(self.adapters))

    def render(self) -> str:
        """The file's text, ending in a line break. Raises ExportError for what Ollama's format cannot hold."""
        lines = [f"FROM {_quoted('FROM', self.from_, bare=True)}"]
        lines += [f"ADAPTER {_quoted('ADAPTER', path, bare=True)}" for path in self.adapters]
        for keyword, text in (("TEMPLATE", self.template), ("SYSTEM", self.system)):
            if text is not None:
                lines.append(f"{keyword} {_quoted(keyword, text)}")
        for name, value in self.parameters.items():
            for item in value if isinstance(value, list) else [value]:
                written = _quoted(f"PARAMETER {name}", item) if isinstance(item, str) else _number(item)
                lines.append(f"PARAMETER {name} {written}")
        for message in self.messages:
            lines.append(f"MESSAGE {message['role']} {_quoted('MESSAGE', message['content'])}")
        if self.license is not None:
            lines.append(f"LICENSE {_quoted('LICENSE', self.license)}")
        text = "\n".join(lines) + "\n"
        assert parse(text) == self, "a Modelfile did not survive being written"
        return text


def parse(text: str) -> Modelfile:
    """Read a Modelfile the way Ollama does, dropping what Ollama drops. Raises ExportError with the keyword at fault.

    DRAFT, RENDERER, PARSER and REQUIRES are Ollama's too, but nothing here writes them: they are refused.
    """
    single: dict[str, str] = {}
    licenses: list[str] = []
    adapters: list[str] = []
    messages: list[dict[str, str]] = []
    parameters: dict[str, list[str]] = {}
    for keyword, name, value in _commands(text):
        if keyword == "parameter":
            parameters.setdefault(name, []).append(value)
        elif keyword == "message":
            messages.append({"role": name, "content": value})
        elif keyword == "license":
            licenses.append(value)
        elif keyword == "adapter":
            adapters.append(value)
        else:
            single[keyword] = value
    if "from" not in single:
        raise ExportError("the Modelfile has no FROM line")
    return Modelfile(
        from_=single["from"],
        template=single.get("template"),
        system=single.get("system"),
        parameters={name: from_text(name, values) for name, values in parameters.items()},
        license="\n".join(licenses),
        messages=messages,
        adapters=adapters,
    )


# --- writing -----------------------------------------------------------------------------------------------------


def _quoted(where: str, text: str, *, bare: bool = False) -> str:
    lost = next((c for c in text if not _kept(c)), None)
    if lost is not None:
        name = unicodedata.name(lost, "unnamed")
        raise ExportError(
            f"{where} holds the character U+{ord(lost):04X} ({name}), which Ollama drops when it reads a Modelfile",
            hint="take it out, or deploy to a running Ollama, which keeps every character",
        )
    if bare and text == text.strip() and '"' not in text and not any(c in text for c in "\r\n"):
        return text
    if '"' not in text:
        return f'"{text}"'
    lines = text.replace("\r", "\n").split("\n")
    if any(line.rstrip().endswith(TRIPLE) for line in lines[:-1]):
        raise ExportError(
            f'{where} has a line that ends in """, which a Modelfile cannot hold',
            hint="change that line, or deploy to a running Ollama, which takes any text",
        )
    return f"{TRIPLE}{text}{TRIPLE}"


def _number(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


# --- reading, after parser.go ------------------------------------------------------------------------------------


def _kept(character: str) -> bool:
    """Go's ``strconv.IsPrint`` (letters, marks, numbers, punctuation, symbols, the plain space), or white space we keep."""
    return character in " \t\r\n" or unicodedata.category(character)[0] in "LMNPS"


def _commands(text: str) -> Iterator[tuple[str, str, str]]:
    """(keyword, parameter name or role, value) of each command."""
    at = 0
    while at < len(text):
        if text[at] in " \t\r\n" or not _kept(text[at]):
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        else:
            keyword, at = _word(text, at)
            keyword = keyword.lower()
            if keyword not in {"from", "template", "system", "license", "parameter", "message", "adapter"}:
                raise ExportError(f"the Modelfile has the command {keyword.upper()!r}, which is not one written here")
            name = ""
            if keyword in {"parameter", "message"}:
                name, at = _word(text, at)
            value, at = _value(text, at)
            yield keyword, name, value


def _line_end(text: str, at: int) -> int:
    while at < len(text) and text[at] not in "\r\n":
        at += 1
    return at


def _word(text: str, at: int) -> tuple[str, int]:
    """A keyword, parameter name or role, and where the next thing begins on the same line."""
    while at < len(text) and text[at] in " \t":
        at += 1
    start = at
    while at < len(text) and text[at] not in " \t\r\n":
        at += 1
    if at >= len(text) or text[at] in "\r\n":
        raise ExportError(f"the Modelfile's {text[start:at]!r} has nothing after it")
    return text[start:at], at


def _value(text: str, at: int) -> tuple[str, int]:
    """From ``at`` to the first line end at which what was read is unquoted or closed."""
    start = at
    while True:
        at = _line_end(text, at)
        value = _unquoted("".join(filter(_kept, text[start:at])).strip())
        if value is not None:
            return value, at
        if at >= len(text):
            raise ExportError("the Modelfile ends inside a quoted text")
        at += 1


def _unquoted(text: str) -> str | None:
    for quotes in (TRIPLE, '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : len(text) - len(quotes)] if closed else None
    return text
