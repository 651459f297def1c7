"""Several LoRA adapters of one base, each with a weight, as one: W' = W + Σ wᵢ sᵢ Bᵢ Aᵢ.

The sum of low-rank changes is one of rank Σ rᵢ: A is the Aᵢ above each other, B the wᵢ sᵢ Bᵢ beside each other, with scale 1.
The result is a plain LoRA folder, which chat, comparison, merge and export take as any other. Changes that do not add up
(DoRA, OFT, weights trained in full, new tokens) are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import UserError
from tunesmith.models.adapters.chain import CONFIG, NEEDED, WEIGHTS, read_config
from tunesmith.models.changes import FILE, read_changes

if TYPE_CHECKING:
    import torch

Weighed = Sequence[tuple[Path, float]]
"""Folders of adapters and what each is multiplied by."""
PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB])(?P<rest>(?:\.default)?(?:\.weight)?)")
COMPANIONS = ("chat_template.jinja", "tokenizer_config.json", FILE)
CHANGES_THE_SUM = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "alora_invocation_tokens")
HINT = "merge one of them with tunesmith export --to hf dtype=float32 and train or put the other one on that folder"


def combine(adapters: Weighed, out: Path, *, chain: bool = False) -> Path:
    """Write the weighted sum of ``adapters`` to the new folder ``out`` as one LoRA adapter in peft's format. Returns ``out``.

    ``chain``: each was learned on top of those before it, so that the sum is the last one on the untouched base. Chat template and changes of the config are the first adapter's. Raises UserError for adapters that do not add up.
    """
    import torch
    from safetensors.torch import save_file

    parts = [_scaled(folder, weight, chain) for folder, weight in adapters]
    _check_alike([folder for folder, _ in adapters])
    modules = list(dict.fromkeys(module for part in parts for module in part))
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for module in modules:
        each = [part[module] for part in parts if module in part]
        if len({tuple(one) for one in each}) > 1:
            raise UserError(f"the adapters have different kinds of layers in {module}", hint=HINT)
        name_a, name_b = each[0]
        try:
            ranks[module] = sum(one[name_a][1] for one in each)
            tensors[name_a] = torch.cat([one[name_a][0] for one in each], dim=-2)
            tensors[name_b] = torch.cat([one[name_b][0] for one in each], dim=1)
        except RuntimeError as error:
            raise UserError(
                f"the adapters were made for different shapes of {module}", hint="a list takes adapters of one base"
            ) from error
        # fused experts: [count, r, in] and [out, r, count], as peft stacks them in two axes
        tensors[name_a] = tensors[name_a].reshape(-1, tensors[name_a].shape[-1]).contiguous()
        tensors[name_b] = tensors[name_b].reshape(tensors[name_b].shape[0], -1).contiguous()
    if len(set(ranks.values())) > 1 and read_config(adapters[0][0]).get("target_parameters"):
        raise UserError(
            "the adapters have experts and are on different layers, so they cannot be put together", hint=HINT
        )
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    config = _config(adapters, {_plain(module): rank for module, rank in ranks.items()})
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in COMPANIONS:
        found = [folder / name for folder, _ in adapters if (folder / name).is_file()]
        if found:
            shutil.copyfile(found[0], out / name)
    return out


def key_of(adapters: Weighed) -> str:
    """A name for the sum of ``adapters``: equal for equal contents and weights."""
    digest = hashlib.sha256()
    for folder, weight in adapters:
        for name in (CONFIG, WEIGHTS, *COMPANIONS):
            if (folder / name).is_file():
                with (folder / name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        digest.update(repr(float(weight)).encode())
    return digest.hexdigest()[:16]


def why_not(folder: Path, *, chain: bool = False) -> str | None:
    """Why the change of the adapter in ``folder`` cannot be weighed and added to another's; None when it can."""
    config = read_config(folder)
    if config.get("peft_type") != "LORA":
        return f"it is of type {config.get('peft_type')}, which turns weights instead of adding to them"
    if config.get("use_dora"):
        return "with DoRA its change depends on the length of the weights it is added to"
    for key in CHANGES_THE_SUM:
        if config.get(key):
            return f"it has {key}: such weights are not a low-rank change of the base"
    if config.get("bias", "none") != "none":
        return "it trains biases"
    if read_changes(folder).tokens:
        return "it learned new tokens"
    if config.get("target_parameters") and (config.get("rank_pattern") or config.get("alpha_pattern")):
        return "it has experts and ranks that differ from layer to layer"
    if (folder / NEEDED).is_file() and not chain:
        return "it was learned on top of other adapters, which were merged first"
    return None


def _scaled(folder: Path, weight: float, chain: bool) -> dict[str, dict[str, tuple[torch.Tensor, int]]]:
    """Module -> name on disk of A and of w · s · B -> the tensor (fp32) and the rank. Experts are unstacked."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (reason := why_not(folder, chain=chain)) is not None:
        raise UserError(
            f"{folder} cannot be put together with other adapters or weighed: {reason}",
            hint=f"a list takes plain LoRA adapters (rsLoRA, PiSSA and OLoRA too); {HINT}",
        )
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}", hint="the file is missing or damaged") from error
    found: dict[str, dict[str, tuple[torch.Tensor, int]]] = {}
    for name, tensor in tensors.items():
        match = PART.fullmatch(name)
        if match is None:
            if name.endswith(".base_layer.weight"):
                continue  # peft's copy of a base's embedding, beside a LoRA on it
            raise UserError(f"{folder / WEIGHTS} holds {name}, which is no part of a plain LoRA", hint=HINT)
        found.setdefault(match["module"], {})[name] = (tensor.float(), 0)
    for module, pair in found.items():
        if len(pair) != 2:
            raise UserError(f"{folder / WEIGHTS}: {module} lacks its lora_A or lora_B", hint="the file is not complete")
        (name_a, (a, _)), (name_b, (b, _)) = sorted(pair.items())
        rank = by_pattern(config.get("rank_pattern"), _plain(module), config.get("r", a.shape[0]))
        alpha = by_pattern(config.get("alpha_pattern"), _plain(module), config.get("lora_alpha", 8))
        scale = weight * (alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
        if a.shape[0] != rank:  # one A and B for each of `count` experts
            a, b = a.reshape(-1, rank, a.shape[1]), b.reshape(b.shape[0], rank, -1)
        found[module] = {name_a: (a, rank), name_b: (b * scale, rank)}
    return found


def _check_alike(folders: Sequence[Path]) -> None:
    first, *others = (read_config(folder) for folder in folders)
    for folder, config in zip(folders[1:], others):
        for key in ("fan_in_fan_out", "target_parameters"):
            if (first.get(key) or None) != (config.get(key) or None):
                raise UserError(f"{folders[0]} and {folder} differ in {key}, so they cannot be put together", hint=HINT)
        if read_changes(folders[0]).config != read_changes(folder).config:
            raise UserError(
                f"{folders[0]} and {folder} were learned on bases of different form (positions stretched, rows added)",
                hint=HINT,
            )


def _config(adapters: Weighed, ranks: dict[str, int]) -> dict[str, Any]:
    """adapter_config.json: every layer by its name, alpha equal to the rank everywhere."""
    first = read_config(adapters[0][0])
    usual = max(ranks.values())
    others = {re.escape(module): rank for module, rank in ranks.items() if rank != usual}
    config = {
        key: first[key]
        for key in ("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out")
        if key in first
    }
    holders = {one.rpartition(".")[0] for one in first.get("target_parameters") or ()}
    layers = [module for module in ranks if not any(module == h or module.endswith(f".{h}") for h in holders)]
    return config | {
        "peft_type": "LORA", "r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others,
        "target_modules": layers, "target_parameters": first.get("target_parameters"), "lora_dropout": 0.0, "bias": "none",
        "inference_mode": True, "init_lora_weights": True,
    }  # fmt: skip


def _plain(module: str) -> str:
    """The name in the model, as peft compares it with patterns."""
    return module.removeprefix("base_model.model.").replace(".base_layer", "")


def by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule: the first pattern that is the module's name or its end after a dot, as a regular expression."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
