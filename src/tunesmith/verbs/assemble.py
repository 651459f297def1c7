"""From a run's config to what the loop works with: rows, model, method, optimizer, and where to resume."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.config.load import save
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs import quantized
from tunesmith.verbs.combinations import check_combinations
from tunesmith.verbs.optimizing import optimizer_builder, plan_memory
from tunesmith.verbs.rows import Rows, encode, pin_rows
from tunesmith.verbs.run_config import METHODS, STAGES, TrainRun

if TYPE_CHECKING:
    import torch

    from tunesmith.models.changes import NewToken
    from tunesmith.models.local import LocalModel
    from tunesmith.render.conversation import Renderer
    from tunesmith.render.selection import Selection
    from tunesmith.train.setup import Setup


def assemble(
    run: RunFolder, config: TrainRun, progress: Progress
) -> tuple[Setup, tuple[Path, dict[str, torch.Tensor]] | None]:
    """What the loop works with, and the newest checkpoint with its fp32 weights. Raises UserError."""
    import torch

    from tunesmith.models.devices import best_device, set_threads
    from tunesmith.train.checkpoint_files import newest_whole
    from tunesmith.train.out_of_memory import opening

    if config.train.deterministic:
        from tunesmith.models.determinism import be_deterministic

        be_deterministic()
    set_threads()
    device = best_device()
    config = _pin_precision(run, config, device, progress)
    check_combinations(config)  # ``precision: auto`` has just been decided
    local, renderer, config = _renderer(run, config, progress)
    plugin = load_plugin(STAGES, config.stage.kind)
    stage = plugin.build(config.stage, renderer)
    rows = encode(config, stage, plugin.EXAMPLES, renderer, progress)
    pin_rows(run, rows)
    folder = newest_whole(run, progress)
    random.seed(config.train.seed)
    torch.manual_seed(config.train.seed)
    with opening(config.model.ref, device):
        setup = _setup(run, config, local, renderer, stage, rows, device, folder, progress)
    resume = None
    if folder is not None:
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
    device: torch.device, newest: Path | None, progress: Progress,
) -> Setup:  # fmt: skip
    """The model opened, the method on it, masters and optimizer. ``newest``: the checkpoint to go on from."""
    from tunesmith.models.devices import dtype_for
    from tunesmith.models.noise import add_noise
    from tunesmith.models.quantization.base import weights_of
    from tunesmith.models.router_loss import with_router_loss
    from tunesmith.train.masters import Masters
    from tunesmith.train.memory import default_micro_tokens
    from tunesmith.train.optimizers.base import parameter_groups
    from tunesmith.train.setup import Setup
    from tunesmith.verbs.samples import generator, prompts_of

    dtype = dtype_for(config.precision, device)
    method = load_plugin(METHODS, config.method.kind)
    quantized.check_method(config, local.folder, method)
    progress.start(f"opening {config.model.ref}")
    model, tokens = _open(config, local, dtype, device, progress)
    asked, config = config, _packing(model, config, rows, progress)
    quantized.tell(model, config, local.folder, progress)
    model = quantized.apply_method(
        model, config, method, base_name=local.name, checkpoint=newest, new_rows=tuple(token.id for token in tokens)
    )
    if config.train.neftune_alpha is not None:
        add_noise(model, config.train.neftune_alpha)
    masters = Masters(model, dtype, pure=config.precision == "pure_bf16")
    learned = sum(p.numel() for p in masters.parameters())
    whole = weights_of(model)
    progress.finish(f"{learned / 1e6:.2f} of {whole / 1e6:.1f} million weights are learned ({config.method.kind})")
    usual = getattr(method, "USUAL_LR", None)
    if usual is not None and config.train.lr > 4 * usual:
        progress.say(
            f"warning: train.lr={config.train.lr:g} is high for method={config.method.kind}: weights learned in full usually take "
            f"about {usual:g} with AdamW"
        )
    micro_tokens = config.train.micro_tokens or max(
        config.data.max_length if device.type == "cuda" else 0, default_micro_tokens(device)
    )
    scales = method.lr_scales(model, config.method) if hasattr(method, "lr_scales") else {}
    groups = parameter_groups(
        masters.named(), lr=config.train.lr, weight_decay=config.train.weight_decay, lr_scales=scales
    )
    build = optimizer_builder(config, model, learned / whole, progress)
    memory = plan_memory(run, asked, config, model, stage, rows, masters, groups, build, micro_tokens, progress)
    optimizer = build(groups)

    stage = with_router_loss(stage, model, config.train.router_loss)

    def save_model(folder: Path, state: Any) -> None:
        method.save(model, folder, state)
        _save_form(folder, model, config, local, renderer, tokens)

    return Setup(
        model=model, stage=stage, train=rows.train, eval=rows.eval, config=config.train, run=run, masters=masters,
        optimizer=optimizer, micro_tokens=micro_tokens, memory=memory, save_model=save_model, eval_sets=_eval_sets(config, rows.eval),
        generate=generator(model, renderer, config.train.sample_tokens),
        prompts=prompts_of(config.train, rows.eval, renderer, progress),
    )  # fmt: skip


def _eval_sets(config: TrainRun, held_out: Selection) -> dict[str, list[int]]:
    """The rows of each evaluation set by its name, where there are several."""
    sets = config.data.eval
    if len(sets) < 2:
        return {}
    twice = [choice.set for choice in sets]
    names = [name if twice.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(twice)]
    return {name: np.flatnonzero(held_out.places[:, 0] == i).tolist() for i, name in enumerate(names)}


def _packing(model: Any, config: TrainRun, rows: Rows, progress: Progress) -> TrainRun:
    """Packing only where the model keeps packed conversations apart."""
    from tunesmith.models.packing_probe import why_not_packed
    from tunesmith.stages.base import lengths_of

    if not config.train.packing:
        return config
    why = why_not_packed(model, max([*lengths_of(rows.train), *lengths_of(rows.eval)], default=0))
    if why is None:
        return config
    progress.say(f"packing is off for this model: {why}; rows are padded instead")
    return config.model_copy(update={"train": config.train.model_copy(update={"packing": False})})


def _open(
    config: TrainRun, local: LocalModel, dtype: torch.dtype, device: torch.device, progress: Progress
) -> tuple[Any, tuple[NewToken, ...]]:
    """The model as training begins: its positions stretched, rows for new tokens; and these tokens."""
    from tunesmith.models.open import open_config
    from tunesmith.models.rope import too_long
    from tunesmith.verbs.weights import open_begun

    if config.model.rope is None:
        text = open_config(local.folder, trust_remote_code=config.model.trust_remote_code).get_text_config()
        if (warning := too_long(text, config.data.max_length)) is not None:
            progress.say(f"warning: {warning}")
    return open_begun(local.folder, config.model, dtype=dtype, device=device)


def _save_form(
    folder: Path, model: Any, config: TrainRun, local: LocalModel, renderer: Renderer, tokens: tuple[NewToken, ...]
) -> None:
    """Beside the learned weights: the tokenizer with the run's template, and how the model's form differs from its base's."""
    from tunesmith.export.companions import save_tokenizer
    from tunesmith.models.changes import Changes, changed_keys, write_changes
    from tunesmith.models.open import open_config

    save_tokenizer(local.folder, folder, renderer.chat_template, tokens)
    base = open_config(local.folder, trust_remote_code=config.model.trust_remote_code)
    write_changes(folder, Changes(changed_keys(base, model.config), tokens))
