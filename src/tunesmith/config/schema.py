"""The JSON Schema of a config: what the page draws its form from and editors complete with."""

from __future__ import annotations

from typing import Any

from tunesmith.config.base import Config


def schema(cls: type[Config]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of ``cls``: ``description`` is the English help, ``zh`` the Chinese, ``basic`` marks
    the fields of the first screen."""
    result = cls.model_json_schema()
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return result
