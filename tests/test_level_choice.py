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
from tunesmith.export.base import NotProvedError
from tunesmith.export.gguf_levels import LEVELS
from tunesmith.verbs import export as verb
from tunesmith.verbs.choosing import for_kl, for_size
from tunesmith.verbs.levels import FULL, PASSED_OVER

NAMES = [name for name in LEVELS if name not in PASSED_OVER]
BYTES = {name: int(LEVELS[name].bits * 1000) for name in NAMES}


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


class Shelf:
    """A ``Maker`` and a ``Quality`` of a model of 8,000 weights: files come out ``factor`` times as large as estimated."""

    progress = SILENT
    texts = (SimpleNamespace(name="own data"),)

    def __init__(self, factor: float = 1.0, errors: dict[str, UserError] | None = None) -> None:
        self.factor, self.errors = factor, errors or {}
        self.made: list[str] = []
        self.there: set[str] = set()

    def ladder(self) -> list[tuple[str, int]]:
        return sorted(BYTES.items(), key=lambda pair: pair[1])

    def make(self, level: str) -> Any:
        self.made.append(level)
        if level in self.errors:
            raise self.errors[level]
        self.there.add(level)
        return SimpleNamespace(level=level, file=level, report=SimpleNamespace(bytes=int(BYTES[level] * self.factor)))

    def remove(self, level: str) -> None:
        if level not in self.errors:
            self.there.remove(level)

    def keep(self, level: str) -> None:
        assert level in self.there

    def tidy(self) -> None:
        """Nothing lies beside these."""

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


def test_what_cannot_be_made_is_passed_over_and_chooses_nothing(tmp_path: Path) -> None:
    """An error says nothing of a level's damage: the level that is chosen is the one that is chosen without it, and it is told."""
    asked_first = (shelf := Shelf()) and for_kl(shelf, shelf, 10.0) and shelf.made[0]  # type: ignore[arg-type]
    broken: Any = Shelf(errors={asked_first: UserError("the converter stopped")})
    lines: list[str] = []
    broken.progress = SimpleNamespace(say=lines.append)
    assert for_kl(broken, broken, 10.0).level == broken.ladder()[0][0]
    assert f"warning: {asked_first} is passed over: the converter stopped" in lines
    assert "the smallest of those that could be made" in lines[-1]
    nothing: Any = Shelf(errors={name: UserError(f"no room for {name}") for name in NAMES})
    with pytest.raises(UserError, match="no room for"):
        for_kl(nothing, nothing, 10.0)


def test_what_fails_its_proof_is_not_taken(tmp_path: Path) -> None:
    """For a bound it is not within, and taken away; for a size the next one is tried."""
    failed = tmp_path / "x.failed"
    failed.write_bytes(b"GGUF")
    errors: dict[str, UserError] = {name: NotProvedError(f"{name} answers otherwise", "", failed) for name in NAMES}
    shelf: Any = Shelf(errors={"q6_k": errors["q6_k"]})
    chosen = for_size(shelf, BYTES["q6_k"])
    assert BYTES[chosen.level] == max(size for name, size in BYTES.items() if size <= BYTES["q6_k"] and name != "q6_k")
    with pytest.raises(NotProvedError, match="answers otherwise"):
        for_size(nothing := Shelf(errors=errors), 10**9)  # type: ignore[arg-type]
    assert len(nothing.made) == len(NAMES) and failed.exists()
    with pytest.raises(UserError, match="no level stays within"):
        for_kl(nothing, nothing, 10.0)  # type: ignore[arg-type]
    assert not failed.exists()


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

    def maker(target: Any, plugin: Any, settings: Any, progress: Any, out: Any, data: Any, *_: Any, **__: Any) -> Any:
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
