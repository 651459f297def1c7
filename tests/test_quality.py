"""The quality report: its figures are those of the definitions, its rules hold on made-up figures, its files agree with each other."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.chat.transformers_engine import TransformersEngine
from tunesmith.config.progress import SILENT, Silent
from tunesmith.evaluate import quality_rules as rules
from tunesmith.evaluate.quality_plot import picture
from tunesmith.evaluate.quality_report import QualityReport
from tunesmith.evaluate.tasks.quality import Asked, Figures, Measured, Passage, Speed, Text, measure, remember
from tunesmith.verbs import opening
from tunesmith.verbs import quality as verb
from tunesmith.verbs.making import Made
from tunesmith.verbs.opening import NoRoomError
from tunesmith.verbs.quality import Quality
from tunesmith.verbs.quality_texts import prompt_of
from tunesmith.verbs.targets import open_weights, renderer_of, target_of


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


def noisy(folder: Path, out: Path, much: float) -> Path:
    """The model with every matrix moved by ``much`` of its own spread: a stand-in for rounding, of any strength."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            tensors[name] = tensor + much * tensor.std() * torch.randn(tensor.shape, generator=random)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def worse(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("worse")
    return {"near": noisy(tiny, root / "near", 0.004), "broken": noisy(tiny, root / "broken", 0.5)}


def engine(folder: Path) -> TransformersEngine:
    target = target_of(str(folder), SILENT)
    return TransformersEngine(open_weights(target, precision="fp32"), renderer_of(target), folder.name)


def exact(folder: Path, ids: list[int]) -> np.ndarray:
    """log softmax in float64, straight from transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits, -1).numpy()


def test_figures_are_those_of_the_definitions(tiny: Path, worse: dict[str, Path], tmp_path: Path) -> None:
    """Two passages, the second one measured in part: every figure again with numpy, over the measured positions alone."""
    ids = [list(range(50, 90)), list(range(900, 930))]
    scored = [(False, *[True] * 39), (False, *[i % 3 == 0 for i in range(1, 30)])]
    text = Text("own data", tuple(Passage(tuple(i), s) for i, s in zip(ids, scored)))
    asked = (Asked((5, 6, 7), "a"), Asked((300, 301, 302, 303), "b"))
    file = tmp_path / "distributions"
    reference = remember(engine(tiny), [text], asked, file, decode=lambda ids: " ".join(map(str, ids)), answer_tokens=5)
    assert file.stat().st_size == 2 * 4096 * text.tokens, "only measured positions, in half precision"
    found = measure(engine(worse["near"]), reference, "near", 123)
    losses, base, kls, agree = [], [], [], []
    for tokens, flags in zip(ids, scored):
        p, q = exact(tiny, tokens), exact(worse["near"], tokens)
        for t in range(1, len(tokens)):
            if flags[t]:
                base.append(-p[t - 1, tokens[t]])
                losses.append(-q[t - 1, tokens[t]])
                kls.append(float((np.exp(p[t - 1]) * (p[t - 1] - q[t - 1])).sum()))
                agree.append(p[t - 1].argmax() == q[t - 1].argmax())
    mine = found.figures["own data"]
    assert mine.tokens == text.tokens == len(kls) == 39 + sum(scored[1])
    assert reference.measured.figures["own data"].perplexity == pytest.approx(math.exp(np.mean(base)), rel=1e-4)
    assert mine.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert mine.mean_kl == pytest.approx(np.mean(kls), rel=2e-3) and mine.mean_kl > 1e-3
    assert mine.p95_kl == pytest.approx(np.percentile(kls, 95), rel=2e-3)
    assert mine.top1 == pytest.approx(np.mean(agree)) and 0 < mine.top1 < 1
    same = measure(engine(tiny), reference, "same", 1)
    assert same.figures["own data"].mean_kl < 1e-5 and same.figures["own data"].top1 == 1
    assert same.changed == 0 and same.answers == reference.measured.answers
    assert found.changed == np.mean([a != b for a, b in zip(found.answers, reference.measured.answers)])
    assert found.speed.prompt > 0 and found.speed.answer > 0 and found.bytes == 123
    reference.close()
    assert not file.exists()


def made(
    name: str, megabytes: float, kl: float, ratio: float = 1.0, top1: float = 0.95, zh_kl: float = 0.02
) -> Measured:
    figures = {
        "own data": Figures(10 * ratio, kl, 3 * kl, top1, 100),
        "Chinese": Figures(50, zh_kl, zh_kl, 0.5, 100),
    }
    return Measured(name, int(megabytes * 1e6), figures, ("yes", "no"), 0.5, Speed(100, 10))


REFERENCE = replace(made("16 bit", 270, 0.0, top1=1.0, zh_kl=0.0), answers=("yes", "yes"), changed=0.0)


@pytest.mark.parametrize(
    ("exports", "use", "words"),
    [
        ([made("q8_0", 145, 0.001), made("q4_k_m", 105, 0.041, 1.032)], "q4_k_m", "q4_k_m (105 MB, perplexity +3.2 %, mean KL 0.041)"),
        ([made("q8_0", 145, 0.001), made("q4_k_m", 105, 0.041, 1.032)], "q4_k_m", "; q8_0 (145 MB, perplexity +0.0 %, mean KL 0.001) if"),
        ([made("q8_0", 145, 0.001), made("q4_k_m", 105, 0.041, 1.06)], "q8_0", "use q8_0"),
        ([made("q8_0", 145, 0.001), made("q2_k", 80, 0.051)], "q8_0", "use q8_0"),
        ([made("q8_0", 145, 0.001), made("q4_k_m", 105, 0.04, zh_kl=0.6)], "q8_0", "use q8_0"),
        ([made("q3_k_m", 95, 0.2, 1.2), made("q2_k", 80, 0.4, 1.4)], "q3_k_m", "the nearest is q3_k_m"),
        ([made("q2_k", 80, 0.9, 1.4)], None, "this export cannot be used"),
        ([made("q2_k", 80, 0.9, 1.4), made("q3_k_s", 90, 0.8, 1.4)], None, "none of these can be used"),
        ([], None, "nothing was measured"),
    ],
)  # fmt: skip
def test_the_smallest_within_the_bounds_is_recommended(exports: list[Measured], use: str | None, words: str) -> None:
    found = rules.recommend(exports, REFERENCE)
    assert found.use == use and words in found.words
    assert rules.recommend(exports[::-1], REFERENCE) == found


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (made("gptq-2bit", 60, 0.3, 1e5), "perplexity 1.0e+06 in place of 10.00"),
        (made("q2_k", 80, 0.6), "on own data: mean KL 0.6"),
        (made("q2_k", 80, 0.3, top1=0.7), "another likeliest token at 30% of the positions"),
        (made("q2_k", 80, 0.3, zh_kl=0.7), "on Chinese: mean KL 0.7"),
        (made("nan", 80, math.nan), "mean KL nan"),
        (made("inf", 80, math.inf), "mean KL inf"),
    ],
)
def test_what_is_broken_is_said_loudly(one: Measured, words: str) -> None:
    (line,) = rules.warnings([one, made("q8_0", 145, 0.001)], REFERENCE)
    assert line.startswith(f"DO NOT USE {one.name}") and words in line
    assert rules.verdict(one, REFERENCE) == "broken"


def test_verdicts() -> None:
    given = [made("a", 1, 0.01, 1.009), made("b", 1, 0.011), made("c", 1, 0.05, 1.049), made("d", 1, 0.04, 1.051)]
    assert [rules.verdict(one, REFERENCE) for one in given] == ["fine", "good", "good", "coarse"]
    assert rules.warnings(given, REFERENCE) == []


def beyond(value: float, way: float = math.inf) -> float:
    return math.nextafter(value, way)


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (made("a", 1, 0.01), "fine"),
        (made("a", 1, beyond(0.01)), "good"),
        (made("a", 1, 0.05), "good"),
        (made("a", 1, beyond(0.05)), "coarse"),
        (made("a", 1, 0.5), "coarse"),
        (made("a", 1, beyond(0.5)), "broken"),
        (made("a", 1, 0.2, 1.5), "coarse"),
        (made("a", 1, 0.2, beyond(1.5)), "broken"),
        (made("a", 1, 0.2, top1=0.75), "coarse"),
        (made("a", 1, 0.2, top1=beyond(0.75, 0)), "broken"),
    ],
)
def test_a_bound_itself_is_within(one: Measured, word: str) -> None:
    assert rules.verdict(one, REFERENCE) == word
    use = rules.recommend([one], REFERENCE)
    assert use.words.startswith(
        {"fine": "use a", "good": "use a", "coarse": "no export stays"}.get(word, "this export cannot be used")
    )
    assert len(rules.warnings([one], REFERENCE)) == (word == "broken")


def test_a_picture_of_many_and_of_none() -> None:
    many = (*(made(f"q{i}", 50 + i, 0.9 / (i + 1)) for i in range(28)), made("inf", 40, math.inf, 1e9))
    for exports in (many, ()):
        report = QualityReport("m", REFERENCE, exports, {"own data": "x", "Chinese": "y"}, ("p", "q"), {}, {})
        assert picture(report).startswith(b"\x89PNG")
        json.dumps(report.as_dict(), allow_nan=False)


@pytest.fixture(scope="module")
def measured(
    tiny: Path, worse: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Quality, QualityReport]]:
    folder = tmp_path_factory.mktemp("measured") / "quality"
    with Quality(target_of(str(tiny), SILENT), tiny, folder, SILENT, rows=1) as quality:
        for name, place in worse.items():
            quality.measure(name, place, {"noise": name})
        yield quality, quality.report()


def test_the_files_say_the_same(measured: tuple[Quality, QualityReport], monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON, Markdown and PNG of a real report; a second one takes what was measured without opening a model."""
    quality, report = measured
    folder = quality.folder
    assert sorted(p.name for p in folder.iterdir()) == [
        f".distributions-{os.getpid()}",
        "quality.json",
        "quality.md",
        "quality.png",
        "results",
    ]
    found = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    page = (folder / "quality.md").read_text(encoding="utf-8")
    assert (folder / "quality.png").read_bytes().startswith(b"\x89PNG") and (
        folder / "quality.png"
    ).stat().st_size > 20_000
    assert found["recommended"] == "near" and [w for w in found["warnings"] if w.startswith("DO NOT USE broken")]
    assert {e["name"]: e["verdict"] for e in found["exports"]} == {
        one.name: report.verdict(one) for one in report.exports
    }
    table = [line.split(" | ") for line in page.splitlines() if line.startswith(("| near", "| broken", "| 16 bit"))]
    assert table[0][0] == "| 16 bit" and len(table) >= 3
    for entry in found["exports"]:
        (row,) = [row for row in table if row[0] == f"| {entry['name']}" and len(row) > 6]
        kl = entry["figures"]["English"]["mean_kl"]
        assert f"{kl:.2g}" in row and f"{entry['figures']['English']['top1']:.1%}" in row
        assert f"{entry['changed']:.0%}" in row
    assert "> **DO NOT USE broken" in page and "## Answers that broken changed" in page
    assert set(found["texts"]) == {"English", "Chinese"} and len(found["prompts"]) >= 6

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("tunesmith.verbs.targets.open_weights", opened)
    monkeypatch.setattr("tunesmith.verbs.targets.open_engine", opened)
    with Quality(quality.target, quality.merged, folder, SILENT, rows=1) as again:
        assert again.known("near", {"noise": "near"}) == next(one for one in report.exports if one.name == "near")
        assert again.known("near", {"noise": "other"}) is None, "other settings are another export"
        assert again.report().as_dict() == report.as_dict()
    with Quality(quality.target, quality.merged, folder, SILENT, rows=2) as other:
        assert other.known("near", {"noise": "near"}) is None, "measured on other text"
    assert verb.quality_folder(quality.target, folder / "x.gguf") == folder / "quality"


def test_a_full_disk_is_said_before(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    from tunesmith.config.errors import ExportError

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 2**10))
    with Quality(target_of(str(tiny), SILENT), tiny, tmp_path / "quality", SILENT, rows=1) as quality:
        with pytest.raises(ExportError, match="quality report needs"):
            quality.measure("x", tiny, {})


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_without_memory_for_the_whole_model(
    measured: tuple[Quality, QualityReport],
    worse: dict[str, Path],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One block at a time the figures are the same; there are no answers, which the report says. Without memory for that: an error in words."""
    found = list(opening.ways(target_of(str(tiny), SILENT), [[1] * 512], as_trained=False, answers=True))
    (blocks,) = [way for way in found if isinstance(way, opening.Way) and way.blocks]
    monkeypatch.setattr(opening, "ways", lambda *_, **__: [replace(blocks, needs=0)])
    with Quality(target_of(str(tiny), SILENT), tiny, tmp_path / "blocks", SILENT, rows=1) as quality:
        one = quality.measure("near", worse["near"], {})
        report = quality.report()
    whole = next(other for other in measured[1].exports if other.name == "near")
    for name, figures in whole.figures.items():
        assert one.figures[name].mean_kl == pytest.approx(figures.mean_kl, rel=1e-3)
        assert one.figures[name].perplexity == pytest.approx(figures.perplexity, rel=1e-5)
    assert (one.answers, one.changed) == ((), None) and one.speed is not None and report.reference.speed is None
    page = (tmp_path / "blocks" / "quality.md").read_text(encoding="utf-8")
    assert (
        "Against the 16-bit model in fp32, one block at a time." in page
        and "changed answers and its speed were not" in page
    )
    kept = json.loads((tmp_path / "blocks" / "quality.json").read_text(encoding="utf-8"))
    assert kept["reference"]["numbers"] == "in fp32, one block at a time" and kept["exports"][0]["changed"] is None
    assert report.short(wide=True)[1][1][-3] == "–" and picture(report).startswith(b"\x89PNG")
    with Quality(quality.target, tiny, tmp_path / "blocks", SILENT, rows=1) as again:
        assert again.known("near", {}) == one and again.report().as_dict() == report.as_dict()
    assert measured[1].as_dict()["reference"]["numbers"] == "in fp32" and measured[1].notes == measured[1].all_notes
    monkeypatch.setattr(opening, "free_memory", lambda _: 1000)
    monkeypatch.setattr(opening, "ways", lambda *_, **__: [blocks])
    with Quality(target_of(str(tiny), SILENT), tiny, tmp_path / "none", SILENT, rows=1) as quality:
        for _ in range(2):
            with pytest.raises(
                NoRoomError, match="cannot be opened to compare with: in fp32, one block at a time it needs"
            ):
                quality.measure("near", worse["near"], {})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoRoomError("it needs 2 GiB", hint="more"), "it needs 2 GiB\nhint: more"),
        (MemoryError(), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out"),
        (OSError(28, "No space left on device"), "No space left"),
        (ZeroDivisionError("x"), "ZeroDivisionError: x\nhint: this is a fault of Tunesmith's; the details are in "),
    ],
)
def test_an_export_is_not_lost_because_it_cannot_be_measured(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    """Whatever happens after it was made: a warning that says why, with a file for what nobody foresaw, and the export's own lines."""
    from tunesmith.export.base import Report
    from tunesmith.verbs import export as verb

    def fail(*_: Any, **__: Any) -> None:
        raise error

    made_ = Made(tmp_path / "out", Report(tmp_path / "out", 1, {"size": 1}), tiny)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(verb, "make", lambda *_, **__: made_)
    monkeypatch.setattr(verb, "Quality", fail)
    said = Said()
    assert verb.export(str(tiny), "fp8", said, choice=verb.Choice()) == (tmp_path / "out", ["size: 1"])
    (line,) = said.lines
    assert line.startswith("warning: the quality report was not made: ") and words in line
    logs = list((tmp_path / "home" / "logs").glob("*.txt")) if (tmp_path / "home").exists() else []
    assert len(logs) == ("details are in" in words)
    if logs:
        assert str(logs[0]) in line and "ZeroDivisionError" in logs[0].read_text(encoding="utf-8")


def test_prompts_end_before_the_last_answer() -> None:
    assert prompt_of([1, 2, 3, 4, 5, 6], [False, False, True, False, False, True]) == (1, 2, 3, 4, 5)
    assert prompt_of([1, 2, 3, 4], [False, False, True, True]) == (1, 2)
    assert prompt_of([1, 2], [False, True]) == () and prompt_of([1, 2], [False, False]) == ()


def test_every_target_is_in_the_table() -> None:
    from tunesmith.config.plugins import names

    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    for name in names("tunesmith.export.targets"):
        assert f"| `{name.replace('_', '-')}` |" in page, name
    for bound in (
        f"at most {rules.FINE_KL:g}",
        f"at most {rules.GOOD_KL:g}",
        f"above {rules.BROKEN_KL:g}",
        f"{rules.BROKEN_RATIO:g} times",
    ):
        assert bound in page


def test_a_short_text_is_not_judged_by_its_likeliest_tokens() -> None:
    """Of 29 tokens 8 may differ where thousands show no harm; divergence and perplexity still count."""
    for tokens, kl, word in ((99, 0.04, "good"), (100, 0.04, "broken"), (99, 0.51, "broken")):
        one = made("a", 1, kl, top1=0.72)
        first = replace(one.figures["own data"], tokens=tokens)
        assert rules.verdict(replace(one, figures=one.figures | {"own data": first}), REFERENCE) == word
