"""From a run's config to what the loop works with: rows, model, method, optimizer, and where to resume."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ConfigError
from tunesmith.config.load import save
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.rows import Rows, encode, pin_rows
from tunesmith.verbs.run_config import METHODS, OPTIMIZERS, STAGES, TrainRun

if TYPE_CHECKING:
    import torch

    from tunesmith.models.local import LocalModel
    from tunesmith.render.conversation import Renderer
    from tunesmith.train.masters import Masters
    from tunesmith.train.memory import MemoryPlan
    from tunesmith.train.optimizers.base import Groups
    from tunesmith.train.setup import Setup


def assemble(
    run: RunFolder, config: TrainRun, progress: Progress
) -> tuple[Setup, tuple[Path, dict[str, torch.Tensor]] | None]:
    """What the loop works with, and the newest checkpoint with its fp32 weights. Raises UserError."""
    import torch

    from tunesmith.models.devices import best_device, set_threads
    from tunesmith.train.out_of_memory import opening

    set_threads()
    device = best_device()
    config = _pin_precision(run, config, device, progress)
    local, renderer, config = _renderer(run, config, progress)
    plugin = load_plugin(STAGES, config.stage.kind)
    stage = plugin.build(config.stage, renderer)
    rows = encode(config, stage, plugin.EXAMPLES, renderer, progress)
    pin_rows(run, rows)
    random.seed(config.train.seed)
    torch.manual_seed(config.train.seed)
    with opening(config.model.ref, device):
        setup = _setup(run, config, local, renderer, stage, rows, device, progress)
    resume = None
    if run.checkpoint_steps():
        folder = run.checkpoint()
        resume = (folder, load_plugin(METHODS, config.method.kind).load_state(folder, setup.model))
        progress.say(f"resuming from {folder.name}")
    return setup, resume


def _pin_precision(run: RunFolder, config: TrainRun, device: torch.device, progress: Progress) -> TrainRun:
    """``auto`` is decided once and written down, so that a resumed run computes in the same numbers."""
    import torch

    from tunesmith.models.precision import resolve_precision

    precision, why = resolve_precision(config.precision, device)
    if precision != config.precision:
        config = config.model_copy(update={"precision": precision})
        save(config, run.config_path)
    progress.say(f"device {device.type}, {precision}{f' ({why})' if why else ''}, {torch.get_num_threads()} threads")
    return config


def _renderer(run: RunFolder, config: TrainRun, progress: Progress) -> tuple[LocalModel, Renderer, TrainRun]:
    from tunesmith.render.stop import end_of_turn_token
    from tunesmith.verbs.targets import open_renderer
    from tunesmith.verbs.templates import pin_template

    config = pin_template(run, config, progress)
    local, renderer = open_renderer(config.model, config.data, progress, run=run)
    if end_of_turn_token(renderer) is None:
        progress.say(
            "warning: the chat template puts no special token after an answer; the model may not learn to stop"
        )
    return local, renderer, config


def _setup(
    run: RunFolder, config: TrainRun, local: LocalModel, renderer: Renderer, stage: Any, rows: Rows,
    device: torch.device, progress: Progress,
) -> Setup:  # fmt: skip
    """The model opened, the method on it, masters and optimizer."""
    from tunesmith.export.companions import save_tokenizer
    from tunesmith.models.devices import dtype_for
    from tunesmith.models.open import open_model
    from tunesmith.train.masters import Masters
    from tunesmith.train.memory import default_micro_tokens
    from tunesmith.train.optimizers.base import parameter_groups
    from tunesmith.train.setup import Setup

    dtype = dtype_for(config.precision, device)
    progress.start(f"opening {config.model.ref}")
    model = open_model(
        local.folder, dtype=dtype, device=device, attention="varlen" if config.train.packing else "sdpa",
        trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip
    method = load_plugin(METHODS, config.method.kind)
    model = method.apply(model, config.method, base_name=local.name)
    masters = Masters(model, dtype, pure=config.precision == "pure_bf16")
    learned = sum(p.numel() for p in masters.parameters())
    whole = sum(p.numel() for p in model.parameters())
    progress.finish(f"{learned / 1e6:.2f} of {whole / 1e6:.1f} million weights are learned ({config.method.kind})")
    micro_tokens = config.train.micro_tokens or max(
        config.data.max_length if device.type == "cuda" else 0, default_micro_tokens(device)
    )
    groups = parameter_groups(masters.named(), lr=config.train.lr, weight_decay=config.train.weight_decay)
    build = _optimizer_builder(config)
    memory = _plan_memory(run, config, model, stage, rows, masters, groups, build, micro_tokens, progress)
    optimizer = build(groups)

    def save_model(folder: Path, state: Any) -> None:
        method.save(model, folder, state)
        save_tokenizer(local.folder, folder, renderer.chat_template)

    return Setup(
        model=model, stage=stage, train=rows.train, eval=rows.eval, config=config.train, run=run, masters=masters,
        optimizer=optimizer, micro_tokens=micro_tokens, save_model=save_model, memory=memory,
    )  # fmt: skip


def _optimizer_builder(config: TrainRun) -> Callable[[Groups], torch.optim.Optimizer]:
    """Groups -> the configured optimizer; in pure bf16 it is stepped with stochastic rounding."""
    from tunesmith.train.rounding import StochasticallyRounded

    plugin = load_plugin(OPTIMIZERS, config.train.optimizer.kind)

    def build(groups: Groups) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = plugin.build(groups, config.train.optimizer)
        return made

    if config.precision != "pure_bf16":
        return build
    return lambda groups: StochasticallyRounded(groups, build, config.train.seed)


def _plan_memory(
    run: RunFolder, config: TrainRun, model: Any, stage: Any, rows: Rows, masters: Masters, groups: Groups,
    build: Callable[[Groups], torch.optim.Optimizer], micro_tokens: int, progress: Progress,
) -> MemoryPlan:  # fmt: skip
    """How much everything takes and how many layers are computed twice; ``auto`` is decided once and written down."""
    from tunesmith.models.checkpointing import decoder_layers, offload_layers
    from tunesmith.models.offload import Offload
    from tunesmith.train.footprint import footprint
    from tunesmith.train.memory import heaviest, plan

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
    found = plan(
        wanted, model, layers, stage, heaviest(rows.train, train.batch, train.seed, micro_tokens, packed=train.packing),
        footprint(model, masters, groups, build), micro_tokens=micro_tokens, packed=train.packing, offload=offload,
    )  # fmt: skip
    if offload is not None and wanted is False:
        offload_layers(layers, offload)

    def pin(count: int) -> None:
        changed = train.model_copy(update={"gradient_checkpointing": count})
        save(config.model_copy(update={"train": changed}), run.config_path)

    if wanted == "auto":
        pin(found.checkpointed)
    found.say, found.pin = progress.say, pin
    progress.say(found.line())
    return found
