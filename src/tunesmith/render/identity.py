"""What decides how rows are encoded, as JSON values: two that are equal give the same ids and masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from tunesmith.data.example import Example
from tunesmith.render.conversation import Renderer

CODE = 1
"""Raise it when the code renders or masks otherwise than before."""


def identity_of_renderer(renderer: Renderer) -> dict[str, Any]:
    """Template (the date is written into it), tokenizer by content, settings, and the libraries that render and encode."""
    tokenizer = renderer.tokenizer
    content = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    content.update(json.dumps({k: str(v) for k, v in tokenizer.special_tokens_map.items()}, sort_keys=True).encode())
    return {
        "code": CODE,
        "template": renderer.template,
        "tool_template": renderer.tool_template,
        "template_args": json.dumps(renderer.template_args, sort_keys=True, default=str),
        "learn": renderer.learn,
        "ignore_tools": renderer.ignore_tools,
        "tokenizer": content.hexdigest(),
        "split_special_tokens": bool(tokenizer.split_special_tokens),
        "max_length": renderer.max_length,
        "libraries": {name: version(name) for name in ("transformers", "tokenizers", "jinja2")},
    }


def identity_of_examples(examples: Iterable[Example]) -> str:
    """SHA-256 over the content and the origins of examples that are in memory already."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
