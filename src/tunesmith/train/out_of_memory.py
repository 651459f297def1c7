"""Memory that ran out, in words: what takes how much, and what to change, the most useful first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from tunesmith.config.errors import TrainingError
from tunesmith.models.devices import memory

if TYPE_CHECKING:
    from tunesmith.train.memory import MemoryPlan

GIB = 1 << 30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on whatever device."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextmanager
def in_words(found: MemoryPlan) -> Iterator[None]:
    """Whatever runs out of memory inside the block is a TrainingError in words."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise explain(found, error) from error


@contextmanager
def opening(reference: str, device: torch.device) -> Iterator[None]:
    """Running out of memory inside the block, where the model is opened, is a TrainingError in words."""
    total = memory(device).total
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{reference} does not fit into the memory of the {device.type} ({gib(total)} GiB): {first_line(error)}",
            hint="model.quantize opens it in 4 bits; method=lora learns with the least memory; or take a smaller model",
        ) from error


def explain(found: MemoryPlan, error: BaseException) -> TrainingError:
    """``error`` (memory ran out) in words: what takes how much, and what to change, the most useful first."""
    f, now = found.footprint, found.activations.needed(found.checkpointed)
    parts = (("weights", f.weights), ("masters", f.masters), ("gradients", f.gradients), ("optimizer", f.optimizer))
    listed = ", ".join(f"{name} {gib(size)}" for name, size in (*parts, ("activations about", now)) if size)
    return TrainingError(
        f"the memory of the {found.device.type} ({gib(found.before.total)} GiB, {gib(found.before.free + found.before.used)} of it for "
        f"this run) is not enough: {listed} GiB with {found.micro_tokens} tokens at a time ({first_line(error)})",
        hint=("; ".join(_advice(found)) or "a smaller model, or a device with more memory")
        + ". The run can be resumed from its last checkpoint",
    )


def _advice(found: MemoryPlan) -> list[str]:
    f, acts, count = found.footprint, found.activations, len(found.layers)
    now = acts.needed(found.checkpointed)
    options: list[tuple[float, str]] = []
    if found.micro_tokens > found.longest:
        smaller = max(found.longest, found.micro_tokens // 2)
        saved = now * (1 - smaller / found.micro_tokens)
        options.append((saved, f"train.micro_tokens={smaller}, same result"))
    else:
        options.append((now / 2, f"data.max_length={found.longest // 2}: the longest row has {found.longest} tokens"))
    if found.checkpointed < count:
        options.append((now - acts.needed(count), "train.gradient_checkpointing=true, slower by about a third"))
    elif count and found.offload is None and found.device.type == "cuda":
        options.append((sum(acts.inputs), "train.activation_offload=true"))
    if f.learned > 0.1 * f.weights:
        options.append((f.learning, "method=lora: only adapters are learned"))
        options.append((f.masters + f.gradients // 2 + f.optimizer // 2, "precision=pure_bf16"))
    options.append((f.unquantized * 0.7, "model.quantize: the frozen weights in 4 bits"))
    best = sorted(options, key=lambda option: -option[0])[:3]
    return [f"{text} (about {gib(saved)} GiB less)" for saved, text in best if saved > 0]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]


def gib(size: float) -> str:
    """GiB in three or so digits."""
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"
