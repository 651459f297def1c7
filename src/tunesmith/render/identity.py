"""What decides how rows are encoded, as JSON values: two that are equal give the same ids and masks."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

from tunesmith.config.code import code_of
from tunesmith.render.conversation import Renderer


def identity_of_renderer(renderer: Renderer) -> dict[str, Any]:
    """Template (the date is written into it), tokenizer by content, settings, the code of the rooms that read and
    render (what a new version does otherwise must not come from an old cache), and the libraries that they use."""
    tokenizer = renderer.tokenizer
    content = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    content.update(json.dumps({k: str(v) for k, v in tokenizer.special_tokens_map.items()}, sort_keys=True).encode())
    return {
        "code": code_of("data", "render", "stages"),
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
