"""Settings that are right one by one and cannot be had together: said from the config alone, before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.config.errors import ConfigError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.verbs.run_config import METHODS

if TYPE_CHECKING:
    from tunesmith.verbs.run_config import TrainRun


def check_combinations(config: TrainRun) -> None:
    """Raises ConfigError. What only the opened model can tell is found later."""
    method, train, quantize = config.method, config.train, config.model.quantize
    if quantize is not None and not getattr(load_plugin(METHODS, method.kind), "FREEZES_BASE", False):
        raise ConfigError(
            f"method={method.kind} changes the base's own weights, but model.quantize={quantize.kind} keeps them in few bits",
            hint="quantized weights cannot be learned: use method=lora, or leave model.quantize out",
        )
    start = getattr(method, "init", "default")
    if quantize is not None and start.startswith(("pissa", "olora")):
        raise ConfigError(
            f"method.init={start} is computed from the base's weights and changes them, but model.quantize={quantize.kind} packs them",
            hint="use the usual start (method.init=default), or leave model.quantize out",
        )
    if train.in_backward and config.precision == "fp16":
        raise ConfigError(
            "precision=fp16 scales the loss and skips steps whose gradients overflow; a step within the backward pass cannot be skipped",
            hint="take precision=bf16 or fp32, or train.update_in_backward=false with an optimizer other than lomo",
        )
    if train.early_stopping is not None and not config.data.eval and not config.data.eval_share:
        raise ConfigError(
            "train.early_stopping waits for the evaluation loss, and nothing is held out (data.eval_share=0, no data.eval)",
            hint="name data.eval, or set data.eval_share=0.05",
        )
