"""Prompts that a model answers while it is trained: which they are, and how it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.config.progress import Progress
from tunesmith.train.config import TrainConfig

if TYPE_CHECKING:
    from tunesmith.render.conversation import Renderer
    from tunesmith.stages.base import Generate
    from tunesmith.train.setup import Prompt


def prompts_of(config: TrainConfig, held_out: Sequence[Any], renderer: Renderer, progress: Progress) -> list[Prompt]:
    """The prompts a person wrote, then what stands before the first learned token of the first held-out rows."""
    from tunesmith.train.setup import Prompt

    written = [[{"role": "user", "content": text}] for text in config.sample_prompts]
    found = [Prompt(text, renderer.prompt_ids(m)) for text, m in zip(config.sample_prompts, written)]
    rows = [held_out[i] for i in range(min(config.samples, len(held_out)))]
    if config.samples and not all(hasattr(row, "mask") for row in rows):
        progress.say(
            "warning: train.samples: the rows of this stage have no prompt to answer; write train.sample_prompts"
        )
        return found
    for row in rows:
        ids = row.ids[: int(np.argmax(row.mask))].tolist()
        found.append(Prompt(renderer.tokenizer.decode(ids, skip_special_tokens=True).strip(), ids))
    if len(rows) < config.samples:
        progress.say(f"train.samples={config.samples}: only {len(rows)} rows are held out")
    return found


def generator(model: Any, renderer: Renderer, most: int) -> Generate:
    """Answers by the most likely tokens, ``most`` of them at most, one prompt at a time; the model is as it was afterwards."""
    import torch

    from tunesmith.render.stop import stop_token_ids

    stop = list(stop_token_ids(renderer, getattr(model, "generation_config", None)))
    tokenizer = renderer.tokenizer

    def generate(prompts: Sequence[Sequence[int]]) -> list[str]:
        device, was_training = next(model.parameters()).device, model.training
        model.eval()
        texts: list[str] = []
        try:
            for prompt in prompts:
                ids = torch.tensor([list(prompt)], device=device)
                with torch.no_grad():
                    out = model.generate(
                        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False,
                        eos_token_id=stop, pad_token_id=tokenizer.pad_token_id, use_cache=True,
                    )  # fmt: skip
                texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
        finally:
            model.train(was_training)
        return texts

    return generate
