"""GPTQ's solver against direct derivations on small matrices, and the packing of its result."""

from __future__ import annotations

import pytest
import torch

from test_quantized_stored import words_along
from tunesmith.export import gptq_solver
from tunesmith.export.gptq_solver import (
    Grid,
    inverse_factor,
    output_error,
    scales_and_zeros,
    solve,
    to_nearest,
)
from tunesmith.models.quantization._stored_linear import gptq_weight, pack_words, unpack_words


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the Hessian of inputs that depend on each other and are of very different size."""
    torch.manual_seed(seed)
    mixed = torch.randn(4 * columns, columns) @ (torch.randn(columns, columns) + 2 * torch.eye(columns))
    x = mixed * torch.logspace(-1, 1, columns)[torch.randperm(columns)]
    return torch.randn(rows, columns) * 0.1, x.t() @ x / len(x)


@pytest.mark.parametrize("block", [128, 4])
@pytest.mark.parametrize("order", ["none", "static"])
def test_each_column_is_what_minimizes_the_error_given_those_before(
    order: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With D = the change of the weight, fixed in the columns Q that are rounded and free in the columns F, tr(D H Dᵀ) is smallest at

        D_F = − D_Q H_QF H_FF⁻¹        (the derivative 2 (D_Q H_QF + D_F H_FF) is 0)

    so column j must be rounded from w_j + (D_F)_j. That is solved here anew for every column, without any factorization.
    """
    monkeypatch.setattr(gptq_solver, "BLOCK", block)
    weight, hessian = problem(3, 6)
    grid = Grid(bits=3, group=-1, symmetric=False, search=False)
    found = solve(weight, hessian, grid, order=order, damp=1e-9)
    order_of = list(range(6)) if order == "none" else hessian.diagonal().argsort(descending=True).tolist()
    scale, zero = found.scales.float()[0], found.zeros.float()[0]
    change = torch.zeros_like(weight, dtype=torch.float64)
    h = hessian.double()
    for step, j in enumerate(order_of):
        q, f = order_of[:step], order_of[step:]
        free = -change[:, q] @ h[q][:, f] @ torch.linalg.inv(h[f][:, f])
        target = weight[:, j] + free[:, 0]
        codes = ((target / scale).round() + zero).clamp(0, 7)
        assert torch.equal(codes, found.codes[:, j].double()), f"column {j}"
        change[:, j] = (codes - zero) * scale - weight[:, j]
    torch.testing.assert_close(weight + change.float(), found.weight())


def test_factor_of_the_inverse() -> None:
    """U is upper triangular and Uᵀ U is the inverse of H with its damping, written out."""
    _, hessian = problem(1, 9)
    factor = inverse_factor(hessian, 0.05)
    damped = hessian + 0.05 * hessian.diagonal().mean() * torch.eye(9)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.t() @ factor @ damped, torch.eye(9), rtol=1e-3, atol=1e-3)
    flat = torch.ones(4, 4)  # of rank 1: cannot be factored without damping
    assert inverse_factor(flat, 1e-9).isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("order", ["none", "static", "activation"])
def test_better_than_the_nearest(bits: int, symmetric: bool, order: str) -> None:
    weight, hessian = problem(16, 128)
    grid = Grid(bits, 32, symmetric)
    ours = output_error(weight, solve(weight, hessian, grid, order=order).weight(), hessian)
    nearest = output_error(weight, to_nearest(weight, grid).weight(), hessian)
    assert 0 < ours < 0.8 * nearest


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searching_scales_helps(bits: int) -> None:
    weight, hessian = problem(16, 128)
    errors = [
        output_error(weight, solve(weight, hessian, Grid(bits, 32, False, search)).weight(), hessian)
        for search in (True, False)
    ]
    assert errors[0] < errors[1]


def test_groups_in_order_of_activation() -> None:
    """The same as sorting the inputs first, solving as they stand, and sorting back; ``g_idx`` then says where each input's group is."""
    weight, hessian = problem(8, 96)
    perm = hessian.diagonal().argsort(descending=True)
    found = solve(weight, hessian, Grid(4, 32, True), order="activation")
    sorted_first = solve(weight[:, perm], hessian[perm][:, perm], Grid(4, 32, True), order="none")
    back = perm.argsort()
    assert torch.equal(found.g_idx, (torch.arange(96) // 32)[back].int())
    assert not torch.equal(found.g_idx, found.g_idx.sort().values)
    # the scales of "none" are fixed before, those of "activation" when a group's turn comes: the first group's are the same
    assert torch.equal(found.scales[0], sorted_first.scales[0])
    assert torch.equal(found.codes[:, perm[:32]], sorted_first.codes[:, :32])
    whole = Grid(4, -1, True)
    one = solve(weight, hessian, whole, order="activation")
    other = solve(weight[:, perm], hessian[perm][:, perm], whole, order="none")
    torch.testing.assert_close(one.weight(), other.weight()[:, back])


def test_scales_that_every_reader_keeps() -> None:
    """Exact in float16 and in bfloat16; zeros between 1 and the largest code; groups of zeros and of one sign are no trouble."""
    torch.manual_seed(0)
    groups = torch.randn(5, 4, 32) * torch.tensor([1e-4, 1e-2, 1.0, 30.0])[None, :, None]
    groups[0, 0], groups[1], groups[2] = 0, groups[1].abs(), -groups[2].abs()
    for grid in (Grid(4, 32, False), Grid(4, 32, True), Grid(2, 32, False, False)):
        scale, zero = scales_and_zeros(groups, torch.ones(4, 32), grid)
        assert torch.equal(scale.half().float(), scale) and (scale > 0).all()
        assert torch.equal(scale.bfloat16().float()[:, 1:], scale[:, 1:])
        assert (zero >= 1).all() and (zero <= 2**grid.bits - 1).all()


def test_an_input_that_is_never_used() -> None:
    weight, hessian = problem(4, 32)
    hessian[5] = hessian[:, 5] = 0
    found = solve(weight, hessian, Grid(8, 32, True))
    assert (found.weight()[:, 5] - weight[:, 5]).abs().max() <= found.scales.float().max() * 0.51


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing(bits: int) -> None:
    """As one long string of bits, and back; the reader's weight is the solver's."""
    torch.manual_seed(bits)
    codes = torch.randint(0, 2**bits, (5, 96))
    words = pack_words(codes, bits)
    assert torch.equal(words, words_along(codes, bits)) and words.dtype == torch.int32
    assert torch.equal(unpack_words(words, bits), codes.int())
    from tunesmith.export.gptq_blocks import PARTS, packed

    weight, hessian = problem(32, 64)
    for order in ("static", "activation"):
        found = solve(weight, hessian, Grid(bits, 32, False), order=order)
        layer = packed(found, bits)
        assert torch.equal(gptq_weight(bits, *(layer[part] for part in PARTS)), found.weight())
