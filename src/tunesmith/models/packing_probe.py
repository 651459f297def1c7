"""Whether a model keeps conversations apart that share a row. Asked of the model itself, with a few tokens; no list of names.

Two short made-up conversations are computed in one packed row, and the second alone. Where what it answers depends on the first,
something in the model looks across the border: attention that does not hear of the bounds, or a state that is carried along (Mamba, linear attention,
short convolutions). What the few tokens cannot show is asked as well: a sliding window that the model writes into its mask, which packed rows do
not have, but does not tell its layers.
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.kernels.interface import Told, listening

FIRST, SECOND = 6, 5
"""Tokens of the two conversations."""


def why_not_packed(model: Any, longest: int) -> str | None:
    """Why rows of this model must not be packed, in words; None when they may be.

    ``longest``: tokens of the longest row. Three forward passes over a dozen tokens, without gradients; training mode is left as it
    was. Differences are relative to the spread of the logits.
    """
    was_training = model.training
    model.eval()
    half_the_digits = torch.finfo(_dtype(model)).eps ** 0.5
    try:
        with torch.no_grad(), listening() as told:
            ids = (torch.arange(FIRST + SECOND) * 7919 + 104_729) % model.config.get_text_config().vocab_size
            packed, alone = _packed(model, ids), _alone(model, ids[FIRST:])
            ids[:FIRST] = ids[:FIRST].flip(0)
            leak = _distance(_packed(model, ids), packed)[
                :2
            ].max()  # the same shapes: without a leak nearly the same bits
            distance = _distance(packed, alone).median()  # rounding may send one token or two to other experts
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, AssertionError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"its code refuses packed rows ({first[:200]})"
    finally:
        model.train(was_training)
    if not leak <= half_the_digits / 4:
        return f"what stands before a conversation in its row changes the conversation's logits, by {leak:.1%}"
    if not distance <= half_the_digits:
        return f"a conversation's logits in a packed row differ from those in a row of its own, by {distance:.1%}"
    return _unknown_window(told, longest)


def _packed(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the second conversation behind the first, [SECOND, vocabulary], asked for as training does."""
    device = next(model.parameters()).device
    bounds = torch.tensor([0, FIRST, FIRST + SECOND], dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)])
    wanted = torch.arange(FIRST, FIRST + SECOND, device=device)
    logits = model(
        input_ids=ids[None].to(device), position_ids=positions[None].to(device), use_cache=False, cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds, max_length_q=FIRST, max_length_k=FIRST, logits_to_keep=wanted,
    ).logits[0]  # fmt: skip
    if len(logits) != SECOND:
        raise ValueError("it computes logits for every token, whatever is asked")
    found: torch.Tensor = logits.float()
    return found


def _alone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the second conversation in a row of its own, padded on the right."""
    device = next(model.parameters()).device
    row = torch.cat([ids, ids.new_zeros(FIRST - SECOND)])[None].to(device)
    mask = (torch.arange(FIRST) < SECOND).long()[None].to(device)
    positions = torch.arange(FIRST, device=device)[None]
    logits: torch.Tensor = model(input_ids=row, position_ids=positions, attention_mask=mask, use_cache=False).logits
    return logits[0, :SECOND].float()


def _distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Of each token: root of the mean square difference of its logits over their standard deviation."""
    spread = other.std(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (one - other).pow(2).mean(-1).sqrt() / spread


def _unknown_window(told: Told, longest: int) -> str | None:
    if told.chunks and not chunks_are_counted_within_conversations():
        return "it attends in chunks, which this version of transformers counts from the start of the row"
    short = [window for window in told.of_masks - told.of_layers if window < longest]
    return f"its layers do not tell their window of {min(short)} tokens" if short else None


def chunks_are_counted_within_conversations() -> bool:
    """Whether transformers' masks know positions within packed conversations (later than 5.17)."""
    from transformers import masking_utils

    return hasattr(masking_utils, "remap_positions_for_packed_sequence")


def _dtype(model: Any) -> torch.dtype:
    """The numbers the model computes in: the coarsest of its weights."""
    kinds = {p.dtype for p in model.parameters() if p.dtype.is_floating_point and p.dtype.itemsize >= 2}
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)
