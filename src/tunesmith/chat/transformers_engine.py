"""The engine over a transformers model in this process (base, tuned or merged)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.chat.base import Messages, Sampling
from tunesmith.render.conversation import Renderer
from tunesmith.render.stop import stop_token_ids

if TYPE_CHECKING:
    import numpy as np


def _whole(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces without the half character that an answer cut off by its token limit may end with."""
    held = ""
    for piece in pieces:
        text = held + piece
        kept = text.rstrip("\ufffd")
        held = text[len(kept) :]
        if kept:
            yield kept


class TransformersEngine:
    """``model``: a causal LM (peft included) on its device. ``renderer`` is the one training used."""

    def __init__(self, model: Any, renderer: Renderer, name: str) -> None:
        self.model = model.eval()
        self.renderer = renderer
        self.name = name
        self.stop_ids = stop_token_ids(renderer, getattr(model, "generation_config", None))

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

        device = next(self.model.parameters()).device
        ids = torch.tensor([self.renderer.prompt_ids(messages)], device=device)
        streamer = TextIteratorStreamer(self.renderer.tokenizer, skip_prompt=True, skip_special_tokens=True)
        options: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": sampling.max_tokens,
            "do_sample": sampling.temperature > 0,
            "eos_token_id": list(self.stop_ids),
            "pad_token_id": self.renderer.tokenizer.pad_token_id,
            "streamer": streamer,
            "use_cache": True,
        }
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        failure: list[BaseException] = []
        left = threading.Event()

        class WhenLeft(StoppingCriteria):
            """Ends the generation when nobody listens any more (Ctrl-C, a closed page)."""

            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                return torch.full((input_ids.shape[0],), left.is_set(), dtype=torch.bool, device=input_ids.device)

        options["stopping_criteria"] = StoppingCriteriaList([WhenLeft()])

        def work() -> None:
            try:
                with torch.no_grad():
                    torch.manual_seed(sampling.seed)
                    self.model.generate(**options)
            except BaseException as error:
                failure.append(error)
                streamer.end()

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            yield from _whole(streamer)
        finally:
            left.set()
            worker.join()
        if failure:
            raise failure[0]

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        import torch

        device = next(self.model.parameters()).device
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([list(tokens)], device=device), use_cache=False).logits[0]
        result: np.ndarray = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
        return result

    def continuation(self, prompt: Sequence[int], most: int, *, stop: bool = True) -> list[int]:
        """The most likely token after ``prompt``, again and again: at most ``most``; without ``stop`` exactly so many."""
        import torch

        ids = torch.tensor([list(prompt)], device=next(self.model.parameters()).device)
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, use_cache=True,
                min_new_tokens=0 if stop else most, eos_token_id=list(self.stop_ids),
                pad_token_id=self.renderer.tokenizer.pad_token_id,
            )  # fmt: skip
        found: list[int] = out[0, len(prompt) :].tolist()
        return [token for token in found if not stop or token not in self.stop_ids]

    def close(self) -> None:
        self.model = None
