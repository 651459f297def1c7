"""Who speaks: the role words in use, and those that a data set brings itself (``tags``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import suggestion
from tunesmith.data.columns import FieldMap, found

Speaker = Literal["system", "user", "assistant", "tool", "call"]
"""Our roles; ``call`` is an assistant turn whose text is the tool calls as JSON."""

ALIASES: Mapping[str, Speaker] = {
    "system": "system", "developer": "system",
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "observation": "tool", "tool": "tool", "tool_response": "tool", "ipython": "tool", "function": "tool",
    "function_call": "call", "tool_call": "call",
}  # fmt: skip
"""Role words in use -> our role, upper and lower case alike."""
ROLE_TAGS: Mapping[str, Speaker] = {
    "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system",
    "observation_tag": "tool", "function_tag": "call",
}  # fmt: skip
KEY_TAGS = ("role_tag", "content_tag")
TAGS = (*KEY_TAGS, *ROLE_TAGS)
"""Every name that ``tags`` may have."""


def speaker(word: Any, fields: FieldMap, place: str) -> Speaker:
    """Our role for a role word; words of ``tags`` come before the known ones. Raises DataError."""
    for tag, role in ROLE_TAGS.items():
        if tag in fields.tags and word == fields.tags[tag]:
            return role
    known = ALIASES.get(word.strip().lower()) if isinstance(word, str) else None
    if known is None:
        own = [fields.tags[tag] for tag in ROLE_TAGS if tag in fields.tags]
        raise DataError(
            f"{place}: the role {word!r} is not known"
            if isinstance(word, str)
            else f"{place}: the role should be a word, found {found(word)}",
            hint=f"known roles: {', '.join(dict.fromkeys([*own, *ALIASES]))}; "
            "tell other words with `tags` (user_tag, assistant_tag, …)",
        )
    return known


def check_tags(tags: Mapping[str, str], where: str) -> None:
    """Raises DataError for names that ``tags`` cannot have, and for one word that stands for two roles."""
    for name in tags:
        if name not in TAGS:
            raise DataError(f"{where}: unknown name {name!r} in `tags`", hint=suggestion(name, TAGS))
    words: dict[str, str] = {}
    for name in ROLE_TAGS:
        if name in tags:
            other = words.setdefault(tags[name], name)
            if other != name:
                raise DataError(
                    f"{where}: {other!r} and {name!r} in `tags` are the same word {tags[name]!r}",
                    hint="each role has a word of its own",
                )
