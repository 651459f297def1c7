"""Which level is chosen for a size and for a bound of damage: the rule alone, over the sizes and the usual damage of real levels."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.config.errors import UserError
from tunesmith.config.progress import SILENT
from tunesmith.export.gguf_levels import LEVELS
from tunesmith.verbs import export as verb
from tunesmith.verbs.levels import FULL, PASSED_OVER, for_kl, for_size

NAMES = [name for name in LEVELS if name not in PASSED_OVER]
BYTES = {name: int(LEVELS[name].bits * 1000) for name in NAMES}


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


class Shelf:
    """A ``Maker`` and a ``Quality`` of a model of 8,000 weights: files come out ``factor`` times as large as estimated."""

    progress = SILENT
    texts = (SimpleNamespace(name="own data"),)

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.made: list[str] = []
        self.there: set[str] = set()

    def ladder(self) -> list[tuple[str, int]]:
        return sorted(BYTES.items(), key=lambda pair: pair[1])

    def make(self, level: str) -> Any:
        self.made.append(level)
        self.there.add(level)
        return SimpleNamespace(level=level, file=level, report=SimpleNamespace(bytes=int(BYTES[level] * self.factor)))

    def remove(self, level: str) -> None:
        self.there.remove(level)

    def keep(self, level: str) -> None:
        assert level in self.there

    def divergence(self, file: Any, level: str) -> Any:
        return SimpleNamespace(mean_kl=0.0 if level in FULL else LEVELS[level].usual_kl)


@pytest.mark.parametrize("limit", [BYTES["q2_k"], BYTES["q4_k_m"] + 1, BYTES["q8_0"], BYTES["f16"] - 1, 10**9])
def test_the_finest_that_fits(limit: int) -> None:
    shelf: Any = Shelf()
    chosen = for_size(shelf, limit)
    assert BYTES[chosen.level] == max(size for size in BYTES.values() if size <= limit)
    assert shelf.made == [chosen.level] and shelf.there == {chosen.level}


def test_a_file_that_came_out_larger_is_not_taken() -> None:
    """A twentieth larger than estimated: the finest that fits is the finest whose file does."""
    shelf: Any = Shelf(1.05)
    chosen = for_size(shelf, BYTES["q6_k"])
    assert BYTES[chosen.level] == max(size for size in BYTES.values() if int(size * 1.05) <= BYTES["q6_k"])
    assert shelf.made[0] == "q6_k" and shelf.there == {chosen.level}
    with pytest.raises(UserError, match="no level of this model fits"):
        for_size(shelf, min(BYTES.values()) - 1)


@pytest.mark.parametrize("bound", [0.004, 0.02, 0.05, 0.3, 10.0])
def test_the_smallest_within_the_bound(bound: float) -> None:
    shelf: Any = Shelf()
    chosen = for_kl(shelf, shelf, bound)
    order = [name for name, _ in shelf.ladder()]
    below = order[order.index(chosen.level) - 1] if chosen.level != order[0] else None
    assert shelf.divergence(None, chosen.level).mean_kl <= bound
    assert below is None or (below in shelf.made and LEVELS[below].usual_kl > bound)
    assert shelf.there == {chosen.level} and len(shelf.made) <= 6


def test_nothing_is_within_less_than_nothing() -> None:
    shelf: Any = Shelf()
    with pytest.raises(UserError, match="no level stays within a mean KL of -1 on own data") as caught:
        for_kl(shelf, shelf, -1)
    assert "the best is f16 with 0" in str(caught.value) and shelf.there == set()


class Asked(Exception):
    pass


@pytest.mark.parametrize(
    ("words", "rule", "asked"), [("--max-kl 0.05", "for_kl", 0.05), ("--target-size 1.5GB", "for_size", 1_500_000_000)]
)
def test_what_is_asked_on_the_command_line_reaches_the_rule(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, words: str, rule: str, asked: float
) -> None:
    def seen(*given: Any) -> None:
        raise Asked(given[-1])

    def maker(target: Any, plugin: Any, settings: Any, progress: Any, out: Any, data: Any, *_: Any) -> Any:
        place = tiny / "x.gguf"
        return SimpleNamespace(
            target=target, plugin=plugin, progress=progress, data=data, merged=tiny, place=lambda _: place
        )

    monkeypatch.setattr(verb, "Maker", maker)
    monkeypatch.setattr(verb, "Quality", lambda *_, **__: nullcontext())
    monkeypatch.setattr(verb, "check_size", lambda *_: None, raising=False)
    monkeypatch.setattr(verb, rule, seen)
    done = CliRunner().invoke(app, ["export", str(tiny), "--to", "gguf", *words.split()])
    assert isinstance(done.exception, Asked) and done.exception.args == (asked,)
