"""Our loop gives the losses of transformers' Trainer with peft. Of 50 steps: benchmarks/reference_trainer.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from families import make_family
from reference_trainer import METHODS, ours, theirs


@pytest.mark.parametrize("name", METHODS)
def test_the_losses_are_transformers_trainers(tmp_path: Path, name: str) -> None:
    folder = make_family(tmp_path / "base", "llama")
    mine = ours(folder, name, 10, tmp_path, "cosine")
    reference = theirs(folder, name, 10, tmp_path, "cosine")
    assert len(mine) == len(reference) == 10
    assert max(abs(a - b) for a, b in zip(mine, reference)) < 1e-5
    assert max(mine) - mine[-1] > 0.01, "nothing was learned, so nothing was compared"
