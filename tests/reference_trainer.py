"""The same training twice: by our loop, and by transformers' Trainer with peft; the loss of every step of both.

Batches, their order, learning rates, clipping and AdamW are the same; transformers pads its batches, we pack ours. Without warm-up, whose first
step differs on purpose (theirs is at rate 0).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from families import WORDS
from tunesmith.models.methods import freeze, full, lora
from tunesmith.models.open import open_model
from tunesmith.runs.folder import RunFolder
from tunesmith.stages import sft
from tunesmith.train.config import TrainConfig
from tunesmith.train.loop import train
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers import adamw
from tunesmith.train.optimizers.base import parameter_groups
from tunesmith.train.setup import Setup

METHODS: dict[str, tuple[Any, Any]] = {
    "lora": (lora, lora.Config(rank=4, alpha=8)),
    "freeze": (freeze, freeze.Config(layers=1)),
    "full": (full, full.Config()),
}
RATES = {"lora": 5e-3, "freeze": 2e-3, "full": 1e-3}
BATCH, ROWS = 4, 24


def learnable_rows(count: int = ROWS, seed: int = 0) -> list[sft.Row]:
    """Rows with a pattern to learn: each word follows from the one before, with some noise."""
    numbers = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        ids = [int(numbers.integers(6, len(WORDS)))]
        for _ in range(int(numbers.integers(6, 30))):
            ids.append(6 + (ids[-1] * 3 + int(numbers.integers(0, 2))) % (len(WORDS) - 6))
        rows.append(sft.Row(np.array(ids, dtype=np.uint32), np.arange(len(ids)) >= 2, f"made:{i}"))
    return rows


def ours(folder: Path, name: str, steps: int, work: Path, schedule: str) -> list[float]:
    """Losses of our loop, packed."""
    module, config = METHODS[name]
    torch.manual_seed(0)
    model = open_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    model = module.apply(model, config, base_name=str(folder))
    masters = Masters(model, torch.float32)
    settings = TrainConfig(max_steps=steps, batch=BATCH, lr=RATES[name], warmup=0, schedule=schedule, save_every=10**6)
    run = RunFolder.create("model: x\n", f"ours-{name}", work / "runs")
    made = Setup(
        model=model, stage=sft.Sft(batches=None, pad_id=0), train=learnable_rows(), eval=[], config=settings, run=run,  # type: ignore[arg-type]
        masters=masters, optimizer=adamw.build(parameter_groups(masters.named(), lr=settings.lr, weight_decay=0.0), adamw.Config()),
        micro_tokens=48, save_model=lambda to, state: module.save(model, to, state),
    )  # fmt: skip
    train(made)
    return [record["loss"] for record in run.metrics() if record["kind"] == "step"]


def theirs(folder: Path, name: str, steps: int, work: Path, schedule: str) -> list[float]:
    """Losses of transformers' Trainer with peft's LoRA or frozen layers, on the same batches in the same order."""
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments

    from tunesmith.train.order import Order

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if name == "lora":
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    elif name == "freeze":
        model.requires_grad_(False)
        model.model.layers[-1].requires_grad_(True)
    rows = learnable_rows()
    plan = Order([row.length for row in rows], BATCH, TrainConfig().seed)
    order = [i for step in range(1, steps + 1) for i in plan.rows(step)]

    def collate(batch: list[sft.Row]) -> dict[str, torch.Tensor]:
        longest = max(row.length for row in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels, attention = torch.full_like(ids, -100), torch.zeros_like(ids)
        for i, row in enumerate(batch):
            ids[i, : row.length] = torch.from_numpy(row.ids.astype(np.int64))
            labels[i, : row.length] = torch.where(torch.from_numpy(row.mask), ids[i, : row.length], -100)
            attention[i, : row.length] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": attention}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(work / "theirs"), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATES[name],
        lr_scheduler_type=schedule, warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True, remove_unused_columns=False, use_cpu=True, optim="adamw_torch", log_level="error",
        adam_beta1=adamw.Config().beta1, adam_beta2=adamw.Config().beta2, adam_epsilon=adamw.Config().epsilon,
    )  # fmt: skip
    trainer = InOrder(model=model, args=arguments, train_dataset=[rows[i] for i in order], data_collator=collate)  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    exact: list[float] = []
    compute = trainer.compute_loss

    def noted(*given: Any, **named: Any) -> Any:  # what it logs is rounded
        loss = compute(*given, **named)
        exact.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
        return loss

    trainer.compute_loss = noted
    trainer.train()
    return exact
