"""What was done to a base, as the sentences of a model card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tunesmith.export.adapters import Adapter
from tunesmith.export.trained import Trained
from tunesmith.hub.store import SOURCE_FILE
from tunesmith.models.changes import Changes
from tunesmith.models.gguf_import import ORIGIN
from tunesmith.models.rope import STRETCHED_LAYERS


def hub_name(named: str | None, raw: dict[str, Any], folder: Path | None = None) -> str | None:
    """``org/name`` if that is what the base is called; a path of this machine is nobody's business.

    ``named``: what the learned weights call their base; ``raw``: the base's config.json; ``folder``: where the base lies, which in a
    hub's cache says where it came from.
    """
    for place in (named, folder, origin_of(folder) if folder is not None else None):
        if place and (found := hub_place(place)):
            return found[0]
    if folder is not None and origin_of(folder) != folder and (told := source_told(origin_of(folder).parent)):
        return told
    name = named or raw.get("_name_or_path") or ""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def origin_of(folder: Path) -> Path:
    """The GGUF that a base was dequantized from, for a folder that came of one; else the folder itself."""
    try:
        told = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["gguf"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder
    return Path(str(told))


def source_told(folder: Path) -> str | None:
    """The model's name on a hub that a folder of our own cache keeps (the demo model, which comes out of a package)."""
    try:
        told = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(told)


def hub_place(folder: Path | str) -> tuple[str, str] | None:
    """Name and revision of a model that lies in the cache of Hugging Face or of our ModelScope downloads; else None."""
    parts = Path(folder).parts
    for i, part in enumerate(parts):
        cached = re.fullmatch(r"models--(.+?)--(.+)", part)
        if cached and parts[i + 1 : i + 2] == ("snapshots",) and len(parts) > i + 2:
            return f"{cached[1]}/{cached[2]}", parts[i + 2]
        fetched = (
            re.fullmatch(r"([\w.-]+)@([\w.%-]+)", parts[i + 2]) if part == "modelscope" and len(parts) > i + 2 else None
        )
        if fetched:
            return f"{parts[i + 1]}/{fetched[1]}", fetched[2]
    return None


def facts(
    adapter: Adapter | None, trained: Trained | None, changes: Changes, count: int, dtype: Any, *, merged: bool = True
) -> list[str]:
    """The method, what changed in form, and what is in the folder: ``count`` tensors, most of them stored as ``dtype``.

    Not ``merged``: the folder holds the adapter alone, which changes ``count`` weights of its base.
    """
    if adapter is not None and not merged:
        whole = f", {len(adapter.replaced)} trained in full" if adapter.replaced else ""
        return [f"{dtype} adapter of {count} weights{whole}", "made with Tunesmith"]
    found = []
    growth = trained.form.growth if trained is not None and trained.form is not None else None
    if adapter is not None:
        kind = adapter.config.get("peft_type", "LoRA")
        found.append(
            f"{kind} adapter merged into {len(adapter.changes)} weights, {len(adapter.replaced)} weights trained in full"
        )
    elif trained is not None and trained.form is None:
        found.append("full fine-tuning: all weights trained")
    elif growth is not None:
        new = len(growth.new)
        layers = "new layer" if new == 1 else "new layers"
        found.append(f"block expansion: {new} {layers} trained between the base's {len(growth.origins) - new}")
    elif trained is not None:
        found.append(f"{len(trained.tensors)} weights trained in full, the others as in the base")
    if changes.tokens:
        found.append("new tokens: " + ", ".join(f"`{token.text}`" for token in changes.tokens))
    rope = changes.config.get("rope_parameters")
    if rope:
        rope = rope.get(STRETCHED_LAYERS, rope)
        found.append(f"positions stretched: {rope['rope_type']}, factor {rope['factor']:g}")
    return [*found, f"{count} tensors, stored as {dtype}", "made with Tunesmith"]
