"""Is a GGUF adapter the one that was trained? Every layer is there, and on its base it answers in llama.cpp as in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.evaluate.parity import Parity, parity
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.gguf_lora import MERGE, PlainLora
from tunesmith.export.load_back import PROBES

BOUND = 1e-3
"""Mean KL (nats) that two programs' arithmetic on the same 16-bit or 32-bit numbers stays below."""
BROKEN = 5.0
"""So many times the usual is no rounding any more; and more than a tenth of what the adapter itself changes never is."""


def check_layers(file: Path, lora: PlainLora) -> dict[str, Any]:
    """Figures of a written adapter. Raises ExportError when layers are missing or it is not marked as an adapter."""
    header = read_gguf(file)
    kind, what = header.metadata.get("general.type"), header.metadata.get("adapter.type")
    if (kind, what) != ("adapter", "lora"):
        raise ExportError(f"the file says it is {kind} / {what}, it must be adapter / lora")
    pairs = {name.removesuffix(".lora_a") for name in header.tensors if name.endswith(".lora_a")}
    others = {name for name in header.tensors if not name.endswith(".lora_a")}
    if others != {f"{name}.lora_b" for name in pairs} or len(pairs) < len(lora.layers):
        raise ExportError(
            f"the adapter changes {len(lora.layers)} layers, {len(pairs)} arrived in the GGUF: this architecture joins some of them",
            hint=MERGE,
        )
    return {
        "architecture": header.metadata.get("general.architecture"),
        "layers": len(pairs),
        "alpha": header.metadata.get("adapter.lora.alpha"),
    }


def told_of_base(base_file: Path) -> dict[str, Any]:
    """What a GGUF says of its model: numbers and texts by key, and ``vocabulary``, its number of tokens."""
    metadata = read_gguf(base_file).metadata
    kept = {key: value for key, value in metadata.items() if not isinstance(value, str) or len(value) < 80}
    return kept | {"vocabulary": metadata.get("tokenizer.ggml.tokens")}


def check_numbers(
    base_file: Path, file: Path, base: Path, learned: Path, probes: Sequence[Sequence[int]], progress: Progress
) -> tuple[Parity, Parity]:
    """``base_file`` (GGUF of 16 or 32 bits) with ``file`` in llama.cpp against ``base`` with ``learned`` in transformers (fp32).

    Returns how far the two are from each other, and how far the base alone is from the trained model. Raises ExportError when the
    first is more than rounding.
    """
    from tunesmith.chat.llamacpp import LlamaCppEngine
    from tunesmith.models.devices import usable_cores

    progress.start("comparing base and adapter in llama.cpp with the trained model in transformers")
    trained = _Told(_distributions(base, learned, probes))
    found = []
    for adapter in (file, None):
        with LlamaCppEngine(base_file, adapter=adapter, threads=usable_cores()) as engine:
            found.append(parity(trained, engine, probes))
    left, whole = found
    if not left.mean_kl <= BROKEN * BOUND or (left.mean_kl > BOUND and left.mean_kl > whole.mean_kl / 10):
        raise ExportError(
            f"{file.name} on its base does not answer in llama.cpp as the trained model does: mean KL {left.mean_kl:.2g}, "
            f"top-1 agreement {left.top1_agreement:.1%} (the base alone: {whole.mean_kl:.2g})",
            hint=f"usual is a mean KL below {BOUND}; {MERGE}",
        )
    progress.finish(f"mean KL {left.mean_kl:.2g}, without the adapter {whole.mean_kl:.2g}")
    return left, whole


def probe_ids(tokenizer: Any, most: int = 256) -> list[list[int]]:
    """Texts with digits, Chinese, emoji and code as token ids, for when the caller has no rows of the run."""
    return [list(tokenizer(text).input_ids)[:most] for text in ("\n".join(PROBES[:4]), "\n".join(PROBES[4:]))]


class _Told:
    """An engine that knows what one model told about the probes, after the model is gone."""

    name = "trained"

    def __init__(self, known: dict[tuple[int, ...], Any]) -> None:
        self.known = known

    def logprobs(self, tokens: Sequence[int]) -> Any:
        return self.known[tuple(tokens)]

    def stream(self, messages: Any, sampling: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...


def _distributions(base: Path, learned: Path, probes: Sequence[Sequence[int]]) -> dict[tuple[int, ...], Any]:
    import torch

    from tunesmith.models.adapters.chain import open_with_needed
    from tunesmith.models.devices import best_device
    from tunesmith.models.open import open_model

    device = best_device()
    model = open_with_needed(open_model(base, dtype=torch.float32, device=device), learned, fp32=False).eval()
    found = {}
    with torch.no_grad():
        for ids in probes:
            logits = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits[0]
            found[tuple(ids)] = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    return found
