"""Runs over a quantized base: what is asked before, what is said at the start, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ConfigError, ExportError, UserError
from tunesmith.config.progress import Progress
from tunesmith.models.local import localize
from tunesmith.models.quantization._opening import stored_method

if TYPE_CHECKING:
    from tunesmith.verbs.run_config import TrainRun
    from tunesmith.verbs.targets import Target

QUANTIZED_BOUND = 0.5
"""Mean KL (nats) from quantized base and adapter to the merged 16-bit model, above which the person is warned. For scale: nf4
raises the perplexity of SmolLM2-135M on lantern_bay 1.3 times, which is 0.26 nats a token; larger models lose less."""


def check_method(config: TrainRun, folder: Path, method: ModuleType) -> None:
    """Raises ConfigError when the method would change weights that the base's folder stores in few bits."""
    stored = stored_method(folder)
    if stored is None or getattr(method, "FREEZES_BASE", False):
        return
    raise ConfigError(
        f"method.kind={config.method.kind} changes the base's own weights, but {config.model.ref} is stored quantized ({stored})",
        hint="quantized weights cannot be learned: use method.kind=lora, or name the 16-bit model",
    )


def apply_method(model: Any, config: TrainRun, method: ModuleType, **how: Any) -> Any:
    """``method.apply``. Raises ConfigError when it would rewrite quantized weights (starts taken from the weights' SVD …)."""
    from tunesmith.models.quantization.base import is_quantized, packed_weights

    if not is_quantized(model):
        return method.apply(model, config.method, **how)
    before = packed_weights(model)
    refusal = ConfigError(
        "this start of the adapters is computed from the base's weights and changes them, but the base is quantized",
        hint="use the usual start (method.init), or leave model.quantize out",
    )
    try:
        adapted = method.apply(model, config.method, **how)
    except TypeError as error:  # peft's answer to PiSSA and its like over integers
        raise refusal from error
    if packed_weights(adapted) != before:
        raise refusal
    return adapted


def tell(model: Any, config: TrainRun, folder: Path, progress: Progress) -> None:
    """Say what the quantized base takes, and into what an export will be merged."""
    from tunesmith.models.quantization.base import size_of

    quantize, stored = config.model.quantize, stored_method(folder)
    if quantize is not None:
        progress.say(size_of(model).in_words(describe(quantize)))
        progress.say(
            "exports are merged into the 16-bit model, not into the quantized base: they answer slightly differently, "
            "and tunesmith export says how much"
        )
    elif stored is not None:
        progress.say(size_of(model).in_words(f"stored as {stored}"))
        progress.say(
            f"the base is stored as {stored}; an adapter for it cannot be merged into it: "
            "tunesmith export needs the 16-bit original (--base MODEL)"
        )


def describe(quantize: Any) -> str:
    """``hqq 4 bit``, ``bnb nf4``, ``fp8``."""
    bits = getattr(quantize, "bits", None)
    if bits == 4 and hasattr(quantize, "type"):
        return f"{quantize.kind} {quantize.type}"
    return quantize.kind if bits is None else f"{quantize.kind} {bits} bit"


def on_original(target: Target, base: str | None, progress: Progress) -> Target:
    """``target`` with its base replaced by the 16-bit original ``base``. Raises ExportError when one is needed and none is named."""
    if target.learned is None:
        if base is not None:
            raise UserError("--base belongs to a run or an adapter; this is a whole model")
        return target
    stored = stored_method(target.base.folder)
    if base is None:
        if stored is not None:
            raise ExportError(
                f"the base of {target.name} is stored as {stored}: an adapter cannot be merged into packed weights",
                hint="name its 16-bit original: tunesmith export … --base MODEL",
            )
        return target
    found = localize(base, progress)
    return replace(target, base=found, original=target.base)


def warn_of_difference(mean_kl: float, progress: Progress) -> None:
    """Quantizing moves the base, so a merged model differs from what was trained; how much is said, and never refused."""
    if mean_kl > QUANTIZED_BOUND:
        progress.say(
            f"warning: the merged model differs much from what was trained on the quantized base (mean KL {mean_kl:.2g}, "
            f"usual below {QUANTIZED_BOUND}): compare the two, or train with more bits"
        )
