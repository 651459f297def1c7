"""GPTQ: round a weight column by column, and let the columns that follow make up for the error of each.

Frantar et al., 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv:2210.17323).
For inputs x of a linear layer with weight W [out, in], the squared error of its outputs under a change D of W is, but for a factor,
tr(D H Dᵀ) with H = E[x xᵀ]. When column i is rounded, the best change of the columns after it is (eq. 3 of the paper)

    e = (w_i − q_i) / U_ii,    w_j ← w_j − e U_ij  for j > i,    U = Cholesky(H⁻¹)ᵀ, upper triangular

and e² is by how much the error grows. Knows tensors only: neither models nor files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 128
"""Columns whose errors reach the columns behind them in one product; a multiple of every group size but whole rows."""
SHRINKS = {2: 0.3, 3: 0.5, 4: 0.6, 8: 0.95}
"""Bits -> the smallest range that is tried, as a part of the range of the weights."""
TRIED = 24


@dataclass(frozen=True)
class Grid:
    """The numbers that a weight may become: scale * (q - zero), 0 <= q < 2^bits.

    ``group``: inputs that share scale and zero (-1: all). ``symmetric``: zero is 2^(bits - 1). ``search``: scales are chosen among
    several ranges by the squared error, each column weighted by what its error costs (1 / U_ii²), not taken from the extremes.
    """

    bits: int
    group: int
    symmetric: bool
    search: bool = True


@dataclass(frozen=True)
class Rounded:
    """``codes`` uint8 [out, in], ``scales`` fp16 and ``zeros`` int32 [groups, out], ``g_idx`` int32 [in]: the group of each input."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    g_idx: torch.Tensor

    def weight(self) -> torch.Tensor:
        """What they stand for, fp32 [out, in]."""
        order = self.g_idx.long()
        return (self.codes - self.zeros.t()[:, order]).float() * self.scales.t().float()[:, order]


def solve(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, *, order: str = "static", damp: float = 0.01
) -> Rounded:
    """GPTQ of ``weight`` [out, in] for ``hessian`` [in, in], the mean of x xᵀ; fp32, on their device.

    ``order``: ``none`` goes through the columns as they stand; ``static`` begins with those whose inputs are largest, in groups of
    neighbours whose scales are fixed before; ``activation`` takes groups in that order too (``desc_act``), so that
    ``g_idx`` is no longer sorted. ``damp``: what is added to the diagonal, as a part of its mean; ten times as much as often as H
    cannot be factored otherwise. An input that was always 0 is rounded to nearest.
    """
    columns = weight.shape[1]
    size = columns if grid.group < 0 else grid.group
    assert columns % size == 0 and (size == columns or BLOCK % size == 0), f"groups of {size} in {columns}"
    diagonal = hessian.diagonal()
    kept = torch.arange(columns, device=weight.device)
    perm = kept if order == "none" else torch.argsort(diagonal, descending=True, stable=True)
    factor = inverse_factor(hessian[perm][:, perm], damp)
    cost = factor.diagonal().square().reciprocal()
    w = weight.float()[:, perm].t().contiguous()  # [in, out]: a column of the weight is a row in memory
    in_place = order != "activation" or size == columns
    if in_place:
        natural = torch.empty_like(cost)
        natural[perm] = cost
        fixed = scales_and_zeros(weight.float().view(len(weight), -1, size), natural.view(-1, size), grid)
        scales, zeros = fixed[0].t().contiguous(), fixed[1].t().contiguous()
        group_of = perm // size
    else:
        scales = w.new_empty(columns // size, len(weight))
        zeros = torch.empty_like(scales)
        group_of = kept // size
    codes = torch.empty_like(w, dtype=torch.uint8)
    numbers = group_of.tolist()
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty_like(w[start:end])
        for i in range(start, end):
            g = numbers[i]
            if not in_place and i % size == 0:
                part = w[i : i + size].t().contiguous()
                s, z = scales_and_zeros(part[:, None], cost[i : i + size][None], grid)
                scales[g], zeros[g] = s[:, 0], z[:, 0]
            q = _codes(w[i], scales[g], zeros[g], grid.bits)
            codes[i] = q.to(torch.uint8)
            error = (w[i] - (q - zeros[g]) * scales[g]) / factor[i, i]
            w[i:end] -= factor[i, i:end, None] * error
            errors[i - start] = error
        w[end:] -= factor[start:end, end:].t() @ errors
    back = torch.argsort(perm)
    return Rounded(codes[back].t().contiguous(), scales.half(), zeros.int(), group_of[back].int())


def to_nearest(weight: torch.Tensor, grid: Grid, cost: torch.Tensor | None = None) -> Rounded:
    """``weight`` [out, in] rounded to the nearest numbers; no column makes up for another.

    ``cost`` [in] weighs the errors of the columns when scales are searched (the mean square of the inputs); None: all alike.
    """
    columns = weight.shape[1]
    size = columns if grid.group < 0 else grid.group
    alike = weight.new_ones(columns) if cost is None else cost
    found = scales_and_zeros(weight.float().view(len(weight), -1, size), alike.view(-1, size), grid)
    scales, zeros = (t.t().contiguous() for t in found)
    g_idx = torch.arange(columns, device=weight.device) // size
    codes = _codes(weight.float(), scales.t()[:, g_idx], zeros.t()[:, g_idx], grid.bits)
    return Rounded(codes.to(torch.uint8), scales.half(), zeros.int(), g_idx.int())


def output_error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    """Mean squared error of the layer's outputs as a part of their mean square: tr(D H Dᵀ) / tr(W H Wᵀ)."""
    change = weight - rounded
    whole = float(((weight @ hessian) * weight).sum(dtype=torch.float64))
    return float(((change @ hessian) * change).sum(dtype=torch.float64)) / whole if whole > 0 else 0.0


def inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """U, upper triangular, with Uᵀ U = (H + λ)⁻¹, λ = ``damp`` times the mean of the diagonal.

    H⁻¹ itself is not formed: with J the reversal of rows, J (H + λ) J = L Lᵀ gives H + λ = R Rᵀ for the upper triangular
    R = J L J, so (H + λ)⁻¹ = R⁻ᵀ R⁻¹ and U = R⁻¹.
    """
    where = hessian.device if hessian.device.type in ("cpu", "cuda") else torch.device("cpu")  # others cannot factor
    h = hessian.to(where, torch.float32).clone()
    diagonal = h.diagonal()  # a view
    mean = diagonal.mean()
    diagonal[diagonal == 0] = mean if mean > 0 else 1.0
    for _ in range(12):
        diagonal += damp * mean
        lower, wrong = torch.linalg.cholesky_ex(h.flip(0, 1))
        if not wrong and bool(lower.diagonal().isfinite().all()):
            break
        damp *= 10
    upper = lower.flip(0, 1).contiguous()
    unit = torch.eye(len(h), device=where)
    return torch.linalg.solve_triangular(upper, unit, upper=True).to(hessian.device)


def scales_and_zeros(groups: torch.Tensor, cost: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero [out, groups] (fp32) for ``groups`` [out, groups, size]; ``cost`` [groups, size] weighs the errors of the search.

    Scales are numbers that float16 and bfloat16 both hold: loaders keep them in the type they compute in.
    A zero is at least 1, because files hold zero - 1 and not every reader lets -1 wrap around.
    """
    high, low = groups.amax(2), groups.amin(2)
    if grid.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    else:
        high, low = high.clamp(min=0), low.clamp(max=0)
    best_scale, best_zero = _scale(high, low, grid)
    if not grid.search:
        return best_scale, best_zero
    best = _cost(groups, best_scale, best_zero, cost, grid.bits)
    largest = 2**grid.bits / (2**grid.bits - 1)  # so far a symmetric range may grow that its positive end is a code too
    for part in torch.linspace(largest, SHRINKS[grid.bits], TRIED).tolist():
        scale, zero = _scale(high * part, low * part, grid)
        error = _cost(groups, scale, zero, cost, grid.bits)
        better = error < best
        best = torch.where(better, error, best)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _scale(high: torch.Tensor, low: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    most = 2**grid.bits - 1
    scale = ((high - low) / most).to(torch.bfloat16).clamp(max=65280.0).half().float()
    scale = torch.where(scale > 0, scale, torch.where(high > low, 2.0**-24, 1.0))
    if grid.symmetric:
        return scale, torch.full_like(scale, 2 ** (grid.bits - 1))
    return scale, (-low / scale).round_().clamp_(1, most)


def _codes(w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return ((w / scale).round_() + zero).clamp_(0, 2**bits - 1)


def _cost(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, cost: torch.Tensor, bits: int) -> torch.Tensor:
    q = _codes(groups, scale[:, :, None], zero[:, :, None], bits)
    error = q.sub_(zero[:, :, None]).mul_(scale[:, :, None]).sub_(groups)
    return (error.square_() * cost).sum(2)
