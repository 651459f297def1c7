"""Half-quadratic quantization: zero points that bear outliers, found without data.

Badri and Shaji, 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (mobiusml.github.io/hqq_blog). With the
step s of a group fixed by its range, the zero z is chosen to make

    Σ |W − s (q − z)|^p,    q = clamp(round(W / s + z)),    p < 1

small: p < 1 lets a few weights (the outliers) be far off so that the many are near. The problem is split by an auxiliary
error E with a quadratic penalty, and these two are repeated:

    E <- shrink(x − r),       shrink(e) = sign(e) max(0, |e| − |e|^(p−1) / β)       x = W / s, r = q − z
    z <- mean(q − (x − E)),   β <- κ β

Everything is in units of the step (x = W / s), so that β means the same for every layer: errors above β^(1/(p−2)) steps
count as outliers. The best zero of each group is kept, which need not be the last.
"""

from __future__ import annotations

import torch

BLOCK = {"cpu": 2**17, "cuda": 2**24}
"""Weights worked on at once: on a CPU what its caches hold, on a GPU what bounds the memory beside the model."""


def steps_and_zeros(
    groups: torch.Tensor, bits: int, *, iterations: int = 20, p: float = 0.7, beta: float = 10.0, kappa: float = 1.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """Step (bf16) and zero (fp16) of each row of ``groups`` [count, size], W ≈ step * (q - zero), 0 <= q < 2^bits.

    ``iterations=0`` is plain rounding to nearest over the group's range.
    """
    parts = groups.split(_rows(groups))
    solved = [_solve(part.float(), bits, iterations, p, beta, kappa) for part in parts]
    return torch.cat([step for step, _ in solved]), torch.cat([zero for _, zero in solved])


def quantize(groups: torch.Tensor, step: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes q (uint8) of ``groups`` [count, size] for steps and zeros as they are stored."""
    size = _rows(groups)
    parts = zip(groups.split(size), step.split(size), zero.split(size), strict=True)
    codes = [_codes(g.float() / s.float()[:, None], z.float()[:, None], bits).to(torch.uint8) for g, s, z in parts]
    return torch.cat(codes)


def _rows(groups: torch.Tensor) -> int:
    return max(1, BLOCK.get(groups.device.type, 2**21) // groups.shape[1])


def _codes(x: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return (x + zero).round_().clamp_(0, 2**bits - 1)


def _solve(
    weights: torch.Tensor, bits: int, iterations: int, p: float, beta: float, kappa: float
) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = weights.amin(1, keepdim=True), weights.amax(1, keepdim=True)
    largest = torch.maximum(low.abs(), high.abs())
    # A group of (nearly) equal weights has no range: its step is then taken from its size, so that zero stays small.
    step = torch.maximum((high - low) / (2**bits - 1), largest * 2.0**-11)
    step = torch.where(step > 0, step, torch.ones_like(step))
    step = (step * (1 + 2.0**-8)).to(torch.bfloat16).float()  # rounded up: the range's ends are not cut off
    x, zero = weights / step, -low / step
    best, best_error = zero, torch.full_like(zero, float("inf"))
    for i in range(iterations + 1):
        codes = _codes(x, zero, bits)
        e = x - codes + zero
        size = e.abs()
        power = size.clamp(min=1e-8).pow(p - 1)
        error = (power * size).sum(1, keepdim=True)
        better = error < best_error
        best, best_error = torch.where(better, zero, best), torch.where(better, error, best_error)
        if i == iterations or not bool(better.any()):
            break
        outliers = e.sign() * (size - power / beta).clamp_(min=0)
        zero = (codes - x + outliers).mean(1, keepdim=True)
        beta *= kappa
    return step[:, 0].to(torch.bfloat16), best[:, 0].to(torch.float16)
