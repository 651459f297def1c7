"""Packed attention equals its plain definition, forward and backward, with windows, soft caps and sinks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunesmith.kernels.attention import length_groups, packed_attention, reference

CASES = {
    "plain": {},
    "window": {"window": 3},
    "wide window": {"window": 100},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks_H": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "all": {"window": 4, "softcap": 5.0, "sinks_H": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths", [(7, 1, 12, 3, 12), (26,), (1, 1, 1), (2, 20, 4)])
def test_equals_the_definition(case: str, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    q, k, v = (torch.randn(1, heads, total, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    options: dict[str, Any] = {key: x.double() if torch.is_tensor(x) else x for key, x in CASES[case].items()}
    weights = torch.randn(1, 4, total, 8, dtype=torch.float64)
    results = []
    for function in (reference, packed_attention):
        out = function(q, k, v, bounds, 0.3, **options)
        gradients = torch.autograd.grad((out * weights).sum(), (q, k, v))
        results.append((out, *gradients))
    tolerance = 1e-9  # everything in float64: what differs is only the order of the sums
    for expected, found in zip(*results):
        assert expected.shape == found.shape
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_the_reference_by_hand() -> None:
    """Two conversations of 2 and 1 tokens, one head of width 1, scale 1, q = k = 0: each query averages what it may see.

    v = 1, 2, 4: token 0 sees {1} -> 1; token 1 sees {1, 2} -> 1.5; token 2 is alone -> 4.
    """
    zero = torch.zeros(1, 1, 3, 1)
    v = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 3, 1)
    out = reference(zero, zero, v, torch.tensor([0, 2, 3]), 1.0)
    assert out.flatten().tolist() == [1.0, 1.5, 4.0]


def test_no_conversation_sees_another() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 4) for _ in range(3))
    bounds = torch.tensor([0, 4, 9], dtype=torch.int32)
    before = packed_attention(q, k, v, bounds, 0.5)
    k[:, :, :4], v[:, :, :4] = 100.0, -100.0
    after = packed_attention(q, k, v, bounds, 0.5)
    assert torch.equal(before[:, :, 4:], after[:, :, 4:]) and not torch.allclose(before[:, :, :4], after[:, :, :4])


def test_groups_waste_little() -> None:
    groups = length_groups([0, 10, 19, 119, 120])
    assert groups == [([2], 100), ([0, 1], 10), ([3], 1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 3, 100])
def test_flash_on_cuda_equals_the_definition(window: int | None) -> None:
    torch.manual_seed(0)
    lengths = (37, 1, 130, 12)
    total = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).cuda()
    made = [torch.randn(1, heads, total, 64, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2)]
    weights = torch.randn(1, 8, total, 64, device="cuda")
    results = []
    for function, dtype in ((reference, torch.float32), (packed_attention, torch.bfloat16)):
        q, k, v = (x.to(dtype).requires_grad_() for x in made)
        out = function(q, k, v, bounds, 0.125, window=window)
        results.append((out, *torch.autograd.grad((out.float() * weights).sum(), (q, k, v))))
    for expected, found in zip(*results):
        assert expected.shape == found.shape
        error = (found.float() - expected).norm() / expected.norm()
        assert error < 0.01, float(error)
