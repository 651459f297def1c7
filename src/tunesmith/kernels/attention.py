"""Causal attention over several conversations packed in one row: none sees another, and no work is spent on the borders.

Shapes: B batch (1 when packed), H query heads, K key/value heads, T tokens, D head width, N conversations.
``bounds`` are the cumulative lengths [0, l1, l1+l2, …, T] of the N conversations.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F


def reference(
    q_BHTD: torch.Tensor, k_BKTD: torch.Tensor, v_BKTD: torch.Tensor, bounds: torch.Tensor, scale: float,
    window: int | None = None, softcap: float | None = None, sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The plain definition with a T x T mask: softmax(scale * q k^T) v where query t sees key s iff they are in the same
    conversation, s <= t, and t - s < ``window``. ``softcap`` c replaces a score x by c * tanh(x / c) (Gemma 2);
    ``sinks_H`` adds one score per head to the denominator (gpt-oss). Returns [B, H, T, D]."""
    length = q_BHTD.shape[2]
    which = torch.searchsorted(bounds.to(torch.long), torch.arange(length, device=q_BHTD.device), right=True)
    position = torch.arange(length, device=q_BHTD.device)
    sees = (which[:, None] == which[None, :]) & (position[:, None] >= position[None, :])
    if window is not None:
        sees &= position[:, None] - position[None, :] < window
    return eager(q_BHTD, k_BKTD, v_BKTD, sees, scale, softcap, sinks_H)


def eager(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees: torch.Tensor, scale: float,
    softcap: float | None, sinks_H: torch.Tensor | None, dropout: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Attention with all scores in memory. ``sees``: bool, broadcast over [B, H, T, S], or a float mask that is added."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    at_least_fp32 = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.transpose(-1, -2)).to(at_least_fp32) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if sees.dtype == torch.bool:
        scores = scores.masked_fill(~sees, torch.finfo(at_least_fp32).min)
    else:
        scores = scores + sees.to(at_least_fp32)
    if sinks_H is not None:
        column = sinks_H.to(at_least_fp32).view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        shares = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        shares = scores.softmax(-1)
    return F.dropout(shares.to(v.dtype), dropout, training=dropout > 0) @ v


def packed_attention(
    q_BHTD: torch.Tensor, k_BKTD: torch.Tensor, v_BKTD: torch.Tensor, bounds: torch.Tensor, scale: float,
    window: int | None = None, softcap: float | None = None, sinks_H: torch.Tensor | None = None, dropout: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Equal to ``reference``, without its T x T mask. ``v`` may have another head width than ``q`` and ``k`` (MLA).

    On CUDA: ``torch.nn.attention.varlen`` (FlashAttention). Elsewhere conversations of similar length are laid side by
    side, padded on the right and run as one causal call: a causal query never sees the padding behind it.
    """
    special = softcap is not None or sinks_H is not None or dropout > 0 or max(q_BHTD.shape[-1], v_BKTD.shape[-1]) > 256
    if q_BHTD.is_cuda and not special and q_BHTD.dtype in (torch.bfloat16, torch.float16):
        return _flash(q_BHTD, k_BKTD, v_BKTD, bounds, scale, window)
    return _side_by_side(q_BHTD, k_BKTD, v_BKTD, bounds.tolist(), scale, window, softcap, sinks_H, dropout)


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = int((bounds[1:] - bounds[:-1]).max())
    bounds = bounds.to(torch.int32)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    left = -1 if window is None else window - 1
    # The kernel wants one head width, a multiple of 8, for all three: columns of zeros change neither scores nor sums.
    width, width_v = q.shape[-1], v.shape[-1]
    common = -(-max(width, width_v) // 8) * 8
    q, k, v = (x if x.shape[-1] == common else F.pad(x, (0, common - x.shape[-1])) for x in (q, k, v))
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
    out = varlen_attn(q_THD, k_THD, v_THD, bounds, bounds, longest, longest, scale=scale, window_size=(left, 0))
    return out.transpose(0, 1).unsqueeze(0)[..., :width_v]  # type: ignore[union-attr]


def _side_by_side(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: list[int], scale: float,
    window: int | None, softcap: float | None, sinks_H: torch.Tensor | None, dropout: float,
) -> torch.Tensor:  # fmt: skip
    # index_select and not indexing: its backward adds rows up much faster than index_put does.
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (q, k, v))
    pieces: list[torch.Tensor] = []
    where_T = torch.empty(q.shape[2], dtype=torch.long)  # row of each token among the rows of all pieces
    offset = 0
    for members, longest in length_groups(bounds):
        # index_NL: position in the pack of token l of conversation n; the tail of short ones repeats their last token.
        starts = torch.tensor([bounds[n] for n in members])
        ends = torch.tensor([bounds[n + 1] for n in members])
        steps = torch.arange(longest)
        index_NL = torch.minimum(starts[:, None] + steps, ends[:, None] - 1)
        real_NL = starts[:, None] + steps < ends[:, None]
        where_T[index_NL[real_NL]] = real_NL.flatten().nonzero().squeeze(-1) + offset
        offset += index_NL.numel()
        index = index_NL.flatten().to(q.device)
        q_NHLD, k_NKLD, v_NKLD = (
            x.index_select(0, index).unflatten(0, index_NL.shape).transpose(1, 2) for x in (q_THD, k_TKD, v_TKD)
        )
        o_NHLD = causal_attention(q_NHLD, k_NKLD, v_NKLD, scale, window, softcap, sinks_H, dropout)
        pieces.append(o_NHLD.transpose(1, 2).flatten(0, 1))
    out_THD = torch.cat(pieces).index_select(0, where_T.to(q.device))
    return out_THD.transpose(0, 1).unsqueeze(0)


def causal_attention(
    q_BHTD: torch.Tensor, k_BKTD: torch.Tensor, v_BKTD: torch.Tensor, scale: float,
    window: int | None = None, softcap: float | None = None, sinks_H: torch.Tensor | None = None, dropout: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Causal attention within each row of the batch, every row one conversation. Returns [B, H, T, D]."""
    length = q_BHTD.shape[2]
    if softcap is not None or sinks_H is not None or (window is not None and length > window):
        steps = torch.arange(length, device=q_BHTD.device)
        gap = steps[:, None] - steps[None, :]
        sees = (gap >= 0) & (gap < (window or length + 1))
        return eager(q_BHTD, k_BKTD, v_BKTD, sees, scale, softcap, sinks_H, dropout)
    groups = q_BHTD.shape[1] // k_BKTD.shape[1]
    if groups > 1:
        k_BKTD, v_BKTD = k_BKTD.repeat_interleave(groups, 1), v_BKTD.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=True, scale=scale, dropout_p=dropout)


def length_groups(bounds: list[int], waste: float = 1.25) -> list[tuple[list[int], int]]:
    """Conversations whose lengths differ by at most the factor ``waste``, with the longest of each group."""
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    groups: list[tuple[list[int], int]] = []
    for n in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[n] == 0:
            continue
        if groups and lengths[n] * waste >= groups[-1][1]:
            groups[-1][0].append(n)
        else:
            groups.append(([n], lengths[n]))
    return groups
