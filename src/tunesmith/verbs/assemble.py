"""From a run's config to what the loop works with: rows, model, method, optimizer, and where to resume."""

from __future__ import annotations

import random
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
    from tunesmith.train.setup import Setup

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def assemble(
    run: RunFolder, config: TrainRun, progress: Progress
) -> tuple[Setup, tuple[Path, dict[str, torch.Tensor]] | None]:
    """What the loop works with, and the newest checkpoint with its fp32 weights. Raises UserError."""
    import torch

    from tunesmith.models.devices import best_device, set_threads

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
    import torch

    from tunesmith.export.companions import save_tokenizer
    from tunesmith.models.open import open_model
    from tunesmith.train.masters import Masters
    from tunesmith.train.optimizers.base import parameter_groups
    from tunesmith.train.setup import Setup

    dtype = getattr(torch, DTYPES[config.precision])
    progress.start(f"opening {config.model.ref}")
    model = open_model(
        local.folder, dtype=dtype, device=device, attention="varlen" if config.train.packing else "sdpa",
        trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip
    method = load_plugin(METHODS, config.method.kind)
    model = method.apply(model, config.method, base_name=local.name)
    masters = Masters(model, dtype)
    learned = sum(p.numel() for p in masters.parameters())
    whole = sum(p.numel() for p in model.parameters())
    progress.finish(f"{learned / 1e6:.2f} of {whole / 1e6:.1f} million weights are learned ({config.method.kind})")
    micro_tokens = config.train.micro_tokens or max(
        config.data.max_length if device.type == "cuda" else 0, _default_micro(device)
    )
    _checkpointing(model, config, micro_tokens, device, progress)
    groups = parameter_groups(masters.named(), lr=config.train.lr, weight_decay=config.train.weight_decay)
    optimizer = _optimizer(config, model, groups, learned / whole, progress)

    def save_model(folder: Path, state: Any) -> None:
        method.save(model, folder, state)
        save_tokenizer(local.folder, folder, renderer.chat_template)

    return Setup(
        model=model, stage=stage, train=rows.train, eval=rows.eval, config=config.train, run=run, masters=masters,
        optimizer=optimizer, micro_tokens=micro_tokens, save_model=save_model,
    )  # fmt: skip


def _optimizer(config: TrainRun, model: Any, groups: Any, share: float, progress: Progress) -> torch.optim.Optimizer:
    """Built by its plug-in, which may take what it needs to know from the model. ``share``: of the weights that are learned."""
    chosen = config.train.optimizer
    plugin = load_plugin(OPTIMIZERS, chosen.kind)
    if config.train.in_backward and config.precision == "fp16":
        raise ConfigError(
            "precision=fp16 scales the loss and skips steps whose gradients overflow; a step within the backward pass cannot be skipped",
            hint="take precision=bf16 or fp32, or train.update_in_backward=false with an optimizer other than lomo",
        )
    if getattr(plugin, "FOR_LARGE_MATRICES", False) and share < 0.1:
        progress.say(
            f"warning: {chosen.kind} saves memory on the model's own weights, and only {100 * share:.1f} % as many weights are learned "
            f"here (method {config.method.kind}): it saves next to nothing and may learn worse than adamw"
        )
    if hasattr(plugin, "for_model"):
        chosen = plugin.for_model(chosen, model)
    optimizer: torch.optim.Optimizer = plugin.build(groups, chosen)
    return optimizer


def _default_micro(device: Any) -> int:
    return 512 if device.type == "cpu" else 8192


def _checkpointing(model: Any, config: TrainRun, micro_tokens: int, device: Any, progress: Progress) -> None:
    """Turn gradient checkpointing on when asked, or when the activations would not fit."""
    from tunesmith.models.devices import memory

    wanted = config.train.gradient_checkpointing
    if wanted == "auto":
        text = model.config.get_text_config()
        # About 34 bytes per token, layer and unit of width for a bf16 layer (Korthikanti et al., 2022, arXiv:2205.05198, eq. 1
        # without dropout and attention scores), plus the logits in fp32 with their gradient.
        width = 2 if config.precision == "fp32" else 1
        needed = micro_tokens * (text.num_hidden_layers * text.hidden_size * 34 * width + text.vocab_size * 12)
        wanted = needed > 0.8 * memory(device).free
    if wanted:
        turn_on_checkpointing(model)
        progress.say("gradient checkpointing is on: activations are computed twice to save memory")


def turn_on_checkpointing(model: Any) -> None:
    """Recompute every layer's activations in the backward pass (Chen et al., 2016, arXiv:1604.06174)."""
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
