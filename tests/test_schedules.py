"""Every schedule against transformers' own, and the shapes that it does not have by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tunesmith.config.plugins import names
from tunesmith.train.config import TrainConfig
from tunesmith.train.schedule import learning_rate

TOTAL, BEFORE = 40, 7
ORACLES: list[tuple[Any, str, dict[str, Any]]] = [
    ("constant", "constant_with_warmup", {}),
    ("linear", "linear", {}),
    ("cosine", "cosine", {}),
    ({"kind": "cosine", "min_ratio": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ({"kind": "cosine", "cycles": 3}, "cosine_with_restarts", {"num_cycles": 3}),
    ({"kind": "polynomial", "power": 3.0, "min_ratio": 0.2}, "polynomial", {"power": 3.0, "lr_end": 0.6}),
    ({"kind": "inverse_sqrt", "timescale": BEFORE}, "inverse_sqrt", {}),
    ({"kind": "inverse_sqrt", "timescale": 20}, "inverse_sqrt", {"timescale": 20}),
    *(
        ({"kind": "wsd", "decay": 10 / 33, "shape": ours, "min_ratio": 0.1}, "warmup_stable_decay",
         {"num_decay_steps": 10, "decay_type": theirs, "min_lr_ratio": 0.1})
        for ours, theirs in (("linear", "linear"), ("cosine", "cosine"), ("sqrt", "1-sqrt"))
    ),
]  # fmt: skip


def schedule(written: Any) -> Any:
    return TrainConfig(schedule=written).schedule


@pytest.mark.parametrize(("written", "name", "settings"), ORACLES, ids=lambda value: str(value))
def test_the_schedule_is_transformers_own(written: Any, name: str, settings: dict[str, Any]) -> None:
    """After the warm-up, which differs on purpose: theirs wastes its first step on a rate of 0."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.0)
    theirs = get_scheduler(name, optimizer, BEFORE, TOTAL, settings)
    for step in range(BEFORE + 1, TOTAL + 1):
        while theirs.last_epoch < step - 1:
            optimizer.step()
            theirs.step()
        found = learning_rate(step, TOTAL, 3.0, schedule(written), BEFORE)
        assert found == pytest.approx(theirs.get_last_lr()[0], abs=1e-9), step


def test_every_schedule_has_an_oracle() -> None:
    assert {schedule(written).kind for written, *_ in ORACLES} == set(names("tunesmith.train.schedules"))


@pytest.mark.parametrize("kind", names("tunesmith.train.schedules"))
@pytest.mark.parametrize("total", [1, 2, 3, 1000])
def test_every_schedule_starts_at_the_peak_and_stays_between(kind: str, total: int) -> None:
    shape = schedule(kind)
    factors = [shape.factor(done, total) for done in range(total)]
    assert factors[0] == 1 and all(0 <= factor <= 1 for factor in factors)
    assert factors == sorted(factors, reverse=True)


def test_restarts_come_at_whole_steps() -> None:
    """Thirds of 6 steps: the peak at 0, 2 and 4, and nowhere a rate from the end of a cycle by rounding."""
    assert [schedule({"kind": "cosine", "cycles": 3}).factor(done, 6) for done in range(6)] == pytest.approx(
        [1, 0.5] * 3
    )
    assert schedule({"kind": "cosine", "cycles": 7}).factor(11 * 3, 77) == 1.0


def test_the_timescale_by_default_is_a_twentieth() -> None:
    assert schedule("inverse_sqrt").factor(50, 1000) == pytest.approx(1 / math.sqrt(2))


def test_the_warm_up_is_a_share_or_steps() -> None:
    rates = [learning_rate(step, 100, 1.0, schedule("constant"), 0.03) for step in (1, 2, 3, 4)]
    assert rates == [learning_rate(step, 100, 1.0, schedule("constant"), 3) for step in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0])
