"""``--quantize-on-server``: an Ollama server makes the level itself. What it takes, and what can be said of what it made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.errors import ExportError

LEVELS = ("q8_0", "q4_k_m", "q4_k_s", "f16", "f32", "bf16")
"""All that a server makes (the recorded refusal of others names them), from files of 16 or 32 bits only."""
NO_LONGER = "quantization is only supported for safetensors"
"""How servers say it that make no levels of a GGUF: those of 2026 and later."""
SOURCES = ("f16", "bf16", "f32")
MADE_THERE = (
    "the server made {} of the file that was sent, without an importance matrix; its file cannot be read back and compared bit by bit, "
    "its answers can"
)


def check_quantize(level: str, source: str) -> str:
    """``level`` as the server wants it written. Raises ExportError before anything is sent: for a level it does not make, or a
    ``source`` (the level of the file) it makes nothing of."""
    wanted = level.strip().lower()
    if wanted not in LEVELS:
        raise ExportError(
            f"an Ollama server does not make {level!r}, only {', '.join(LEVELS)}",
            hint=f"make it here instead: --level {wanted}",
        )
    if source not in SOURCES:
        raise ExportError(
            f"an Ollama server quantizes files of 16 or 32 bits only, not {source}",
            hint="leave --level out, or say --level f16 with --quantize-on-server",
        )
    return wanted.upper()


def differs(shown: Mapping[str, Any], quantize: str) -> dict[str, str]:
    """What is wrong with the level that ``/api/show`` tells; empty when it is the one that was asked for, or none is told."""
    told = (shown.get("details") or {}).get("quantization_level")
    if not told or str(told).upper() == quantize.upper():
        return {}
    return {"quantization": f"the server calls it {told}, {quantize} was asked for"}
