"""A run's optimizer and what training takes in memory, from its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ConfigError
from tunesmith.config.load import save
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.rows import Rows
from tunesmith.verbs.run_config import OPTIMIZERS, TrainRun

if TYPE_CHECKING:
    import torch

    from tunesmith.train.masters import Masters
    from tunesmith.train.memory import MemoryPlan
    from tunesmith.train.optimizers.base import Groups


def optimizer_builder(
    config: TrainRun, model: Any, share: float, progress: Progress
) -> Callable[[Groups], torch.optim.Optimizer]:
    """Groups -> the configured optimizer, whose plug-in may take what it needs to know from the model; in pure bf16 it is
    stepped with stochastic rounding. ``share``: of the model's weights that are learned."""
    from tunesmith.train.rounding import StochasticallyRounded

    chosen = config.train.optimizer
    plugin = load_plugin(OPTIMIZERS, chosen.kind)
    if getattr(plugin, "FOR_LARGE_MATRICES", False) and share < 0.1:
        progress.say(
            f"warning: {chosen.kind} saves memory on the model's own weights, and only {100 * share:.1f} % as many weights are learned "
            f"here (method {config.method.kind}): it saves next to nothing and may learn worse than adamw"
        )
    if hasattr(plugin, "for_model"):
        chosen = plugin.for_model(chosen, model)

    def build(groups: Groups) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = plugin.build(groups, chosen)
        return made

    if config.precision != "pure_bf16":
        return build
    return lambda groups: StochasticallyRounded(groups, build, config.train.seed)


def plan_memory(
    run: RunFolder, asked: TrainRun, config: TrainRun, model: Any, stage: Any, rows: Rows, masters: Masters, groups: Groups,
    build: Callable[[Groups], torch.optim.Optimizer], micro_tokens: int, progress: Progress,
) -> MemoryPlan:  # fmt: skip
    """How much everything takes and how many layers are computed twice; ``auto`` is decided once and written down (into ``asked``, the
    config as it was asked for; ``config`` may have packing off)."""
    from tunesmith.models.checkpointing import decoder_layers, offload_layers
    from tunesmith.models.offload import Offload
    from tunesmith.stages.base import lengths_of
    from tunesmith.train.footprint import footprint
    from tunesmith.train.memory import heaviest, plan
    from tunesmith.train.order import Order

    wanted, train = config.train.gradient_checkpointing, config.train
    layers = decoder_layers(model)
    if not layers and wanted not in (False, 0, "auto"):
        raise ConfigError(
            f"train.gradient_checkpointing: {type(model).__name__} has no layers that can be computed twice",
            hint="train.gradient_checkpointing=false, and a smaller train.micro_tokens where memory is short",
        )
    device = next(model.parameters()).device
    offload = None
    if train.activation_offload and device.type == "cuda":
        offload = Offload(device, (*model.parameters(), *model.buffers()))
    elif train.activation_offload:
        progress.say(f"train.activation_offload changes nothing here: device {device.type}")
    lengths = lengths_of(rows.train)
    order = Order(lengths, train.batch, train.seed, train.batch_tokens)
    at_once = micro_tokens
    if train.in_backward:  # then a step is one forward pass
        longest = sorted(lengths)[-len(order.rows(1)) :]
        at_once = sum(longest) if train.packing else longest[-1] * len(longest)
    found = plan(
        wanted, model, layers, stage, heaviest(rows.train, order, at_once, packed=train.packing),
        footprint(model, masters, groups, build, gradients_live_together=not train.in_backward), micro_tokens=at_once, packed=train.packing, offload=offload,
    )  # fmt: skip
    if offload is not None and wanted is False:
        offload_layers(layers, offload)

    def pin(count: int) -> None:
        changed = asked.train.model_copy(update={"gradient_checkpointing": count})
        save(asked.model_copy(update={"train": changed}), run.config_path)

    if wanted == "auto":
        pin(found.checkpointed)
    found.say, found.pin = progress.say, pin
    progress.say(found.line())
    return found
