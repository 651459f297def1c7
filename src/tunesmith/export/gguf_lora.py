"""Which layers of an adapter llama.cpp can add while it answers, and the adapter in the one form its converter reads.

llama.cpp computes W x + s · B (A x) per layer, s = alpha / r with one alpha for the whole file (``llama_adapter_lora_weight::get_scale`` in
src/llama-adapter.h). Everything a LoRA can be besides is folded into B here, or refused: what changes weights in another way is merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.config.errors import ExportError
from tunesmith.export.adapters import CONFIG, WEIGHTS, read_adapters
from tunesmith.export.adapters import combined as located
from tunesmith.export.changes import load
from tunesmith.export.lora import Delta
from tunesmith.export.model_config import load_config, tied_names
from tunesmith.export.tensor_files import StoredTensor, read_json
from tunesmith.models.changes import read_changes

MERGE = "merge it instead: export it --to gguf, or deploy it without --as adapter"


@dataclass(frozen=True)
class PlainLora:
    """``layers``: weight name in the base's files -> its A and B. ``alpha`` holds for the whole file."""

    layers: dict[str, Delta]
    alpha: float

    def folded(self, delta: Delta) -> float:
        """By what B must be multiplied so that alpha / rank gives the layer's own scale: 1 for most adapters."""
        return delta.scale / (self.alpha / delta.a.shape[0])


def read_plain(learned: Path, base: Path, stored: dict[str, StoredTensor]) -> PlainLora:
    """The LoRA in ``learned`` for the model in ``base``, whose tensors are ``stored``. Raises ExportError for what is more than
    ``B A`` added to weights the base has: such an adapter is merged."""
    if not (learned / CONFIG).is_file():
        raise ExportError(f"{learned} holds no adapter: what was learned there are whole weights", hint=MERGE)
    adapters = read_adapters(learned)
    if len(adapters) > 1:
        names = ", ".join(str(one.folder) for one in adapters[:-1])
        raise ExportError(
            f"{learned} was learned on top of other adapters ({names}); alone, on the base, it answers differently", hint=MERGE
        )  # fmt: skip
    if read_changes(learned):
        raise ExportError(
            f"{learned} was learned on a changed base (new tokens, or positions stretched), which an adapter cannot carry",
            hint=MERGE,
        )
    adapter = adapters[0]
    if adapter.experts:
        raise ExportError(
            f"{learned} changes fused experts, which llama.cpp does not take from a peft adapter", hint=MERGE
        )
    whole = [*adapter.replaced, *adapter.rows]
    if whole:
        raise ExportError(
            f"{learned} trained {whole[0]} in full ({len(whole)} weights in all), which a GGUF adapter cannot hold", hint=MERGE
        )  # fmt: skip
    adapter = located(adapters, base, stored)
    tied = tied_names(load_config(base))
    layers: dict[str, Delta] = {}
    for name, changes in adapter.changes.items():
        (change,) = changes
        if not isinstance(change, Delta):
            raise ExportError(f"{learned} turns {name} (OFT), which a GGUF adapter cannot hold", hint=MERGE)
        _check_layer(learned, name, change, stored, tied)
        layers[name] = change
    for name, copy in adapter.carried.items():
        if name in stored and stored[name].shape != copy.shape:
            raise ExportError(f"{learned} carries a {name} of another size than the base's", hint=MERGE)
    return PlainLora(layers, float(adapter.config.get("lora_alpha") or 1.0))


def _check_layer(
    learned: Path, name: str, change: Delta, stored: dict[str, StoredTensor], tied: dict[str, str]
) -> None:
    if change.magnitude is not None:
        raise ExportError(f"{learned} is a DoRA, whose lengths a GGUF adapter cannot hold", hint=MERGE)
    if name in tied or name in tied.values():
        raise ExportError(
            f"{learned} changes {name}, which this base uses for its input and its output alike; llama.cpp cannot change only one",
            hint=MERGE,
        )
    if name not in stored:
        raise ExportError(
            f"{learned} changes {name}, which the base does not have", hint="adapter and base do not belong together"
        )
    misfit = change.misfit(stored[name].shape)
    if misfit:
        raise ExportError(
            f"{name} is {list(stored[name].shape)} in the base, the adapter is made for {misfit}",
            hint="adapter and base do not belong together",
        )
    if change.transposed and "embed" not in name:
        raise ExportError(
            f"{learned} changes {name}, which is stored the other way round (fan_in_fan_out); llama.cpp's converter turns it wrongly",
            hint=MERGE,
        )


def write_plain(lora: PlainLora, folder: Path, config: Path) -> Path:
    """The adapter in peft's form with one alpha, nothing folded twice, in the new ``folder``; ``config``: its adapter_config.json."""
    import json

    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tensors = {}
    for name, delta in lora.layers.items():
        a, b, factor = load(delta.a), load(delta.b), lora.folded(delta)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        kind, end = ("lora_embedding_", "") if delta.transposed else ("lora_", ".weight")
        tensors[f"{module}.{kind}A{end}"] = a.contiguous()
        tensors[f"{module}.{kind}B{end}"] = (b if factor == 1 else b * factor).contiguous()
    save_file(tensors, folder / WEIGHTS)
    kept = {key: read_json(config).get(key) for key in ("peft_type", "r", "base_model_name_or_path")}
    (folder / CONFIG).write_text(json.dumps(kept | {"lora_alpha": lora.alpha}), encoding="utf-8")
    return folder
