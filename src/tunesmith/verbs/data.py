"""``tunesmith data check``: what is in data sets and what is wrong with it, before a minute of training is spent on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tunesmith.config.errors import DataError, UserError
from tunesmith.config.plugins import load
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.data.doctor.base import SEVERITIES
from tunesmith.data.doctor.examine import Examination, Stage, examine
from tunesmith.data.doctor.fix import Fixed, check_out, write_fixed
from tunesmith.data.doctor.histogram import bins, plot
from tunesmith.data.load import OpenSet, open_set
from tunesmith.data.part import is_there as is_there
from tunesmith.verbs.data_steps import Steps, held_out, steps_of
from tunesmith.verbs.run_config import TrainRun, load_config

if TYPE_CHECKING:
    from tunesmith.render.token_pass import TokenPass


@dataclass(frozen=True)
class Checked:
    """An examination and what it was made of. ``tokens`` is None without a model."""

    config: TrainRun
    train: tuple[OpenSet, ...]
    eval: tuple[OpenSet, ...]
    found: Examination
    tokens: TokenPass | None
    fixed: Fixed | None = None

    @property
    def ok(self) -> bool:
        """No error was found."""
        return self.found.findings.count("error") == 0

    @property
    def steps(self) -> Steps:
        """What training would make of the rows."""
        other = "other_kind" in self.found.findings.checks()
        return steps_of(
            self.config, self.found.shapes["train"].rows, self.found.counts["train"], other_kind=other,
            lengths=self.tokens.lengths if self.tokens is not None else (),
        )  # fmt: skip


def settings(
    sets: Sequence[str], overrides: Sequence[str] = (), config: Path | None = None, model: str | None = None
) -> tuple[TrainRun, str | None]:
    """The whole-run config that the data is checked for, and the model to count tokens with (None = no tokens).

    Sets and model on the command line stand above the file. Raises ConfigError, UserError.
    """
    given = [f"data.train={json.dumps([_set(word) for word in sets], ensure_ascii=False)}"] if sets else []
    if model is not None:
        given.append(f"model.ref={json.dumps(model, ensure_ascii=False)}")
    if config is None and not sets and not any(o.startswith("data") for o in overrides):
        raise UserError("no data set is named", hint="for example: tunesmith data check my.jsonl --model demo")
    named = (
        model is not None or config is not None or any(o.partition("=")[0] in ("model", "model.ref") for o in overrides)
    )
    run = load_config(config, [*([] if named else ["model=demo"]), *overrides, *given])
    return run, run.model.ref if named else None


def _set(word: str) -> Any:
    """A set as a person writes it on the command line: its name, or ``{set: NAME, columns: …}``."""
    if not word.startswith("{"):
        return word
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise UserError(
            f"{word!r} is no mapping: {str(error).splitlines()[0]}",
            hint="for example '{set: my.jsonl, columns: {prompt: question, response: answer}}'",
        ) from error


def check(
    run: TrainRun,
    progress: Progress,
    *,
    tokens: bool,
    full: bool = False,
    fix: Path | None = None,
    picture: Path | None = None,
    stage_named: bool = False,
) -> Checked:
    """Examine the data of a config; with ``tokens`` rendered as training would (``full``: every row, however long that takes).

    ``fix`` is where a cleaned copy is written, ``picture`` where the lengths are drawn (.png). Raises UserError for what
    cannot be opened, and for a ``fix`` that is there already. ``stage_named``: a person chose the stage, so that rows of another
    kind are an error.
    """
    data = run.data
    if fix is not None:
        check_out(fix)
        if len(data.train) != 1:
            raise DataError(
                "--fix cleans one set at a time", hint="name one set, and its evaluation set with data.eval=…"
            )
    if picture is not None and picture.suffix != ".png":
        raise UserError(f"{picture}: the plot is a PNG", hint="give it a name that ends in .png")
    train, held = ([open_set(choice, data, progress) for choice in choices] for choices in (data.train, data.eval))
    look, special = _tokens(run, full, progress) if tokens else (None, None)
    found = examine(
        train,
        held,
        special_tokens=special,
        held_out=lambda rows: held_out(rows, data, run.train.seed),
        tokens=look,
        stage=Stage(run.stage.kind, load_plugin("tunesmith.stages", run.stage.kind).EXAMPLES, stage_named),
        progress=progress,
    )
    if picture is not None:
        shape = found.shapes["train"]
        lengths = look.lengths if look is not None else ()
        learned = look.summary().get("learned_share") if look is not None else None
        plot(picture, dict(shape.turns), lengths, data.max_length, ", ".join(s.name for s in train), learned)
        progress.say(f"plot: {picture}")
    fixed = None
    if fix is not None:
        if found.stopped:
            raise DataError(
                found.stopped, hint="a file that cannot be read to its end cannot be copied; mend that place first"
            )
        fixed = write_fixed(train[0], found.findings, found.checks, fix, progress)
    return Checked(run, tuple(train), tuple(held), found, look, fixed)


def _tokens(run: TrainRun, full: bool, progress: Progress) -> tuple[TokenPass, frozenset[str]]:
    from tunesmith.render.token_pass import TokenPass, special_tokens_of
    from tunesmith.verbs.targets import open_renderer

    _, renderer = open_renderer(run.model, run.data, progress)
    return TokenPass(renderer, full=full, progress=progress), special_tokens_of(renderer.tokenizer)


def as_json(checked: Checked) -> Iterator[str]:
    """The report as one JSON object, piece by piece: there may be a million findings. They come last, one a line, so that a reader
    need not hold them all."""
    found = checked.found
    sets = [
        {"name": s.name, "part": part, "rows": rows, "format": s.format, "reason": s.reason, "notes": list(s.notes)}
        for part, sources in (("train", checked.train), ("eval", checked.eval))
        for s, rows in zip(sources, found.counts[part])  # type: ignore[index]
    ]
    head: dict[str, Any] = {
        "ok": checked.ok,
        "sets": sets,
        "counts": {severity: found.findings.count(severity) for severity in SEVERITIES},
        "shape": {part: shape.as_dict() for part, shape in found.shapes.items() if shape.rows or shape.unreadable},
        "tokens": _tokens_dict(checked.tokens, checked.config.data.max_length) if checked.tokens is not None else None,
        "steps": checked.steps.line(),
        "training": asdict(checked.steps),
        "seconds": round(found.seconds, 3),
        "stopped": found.stopped or None,
        "fixed": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(checked.fixed).items()}
        if checked.fixed
        else None,
        "checks": {
            name: {"title": c.title, "mends": c.mends}
            for name in found.findings.checks()
            if (c := check_of(checked, name))
        },
    }
    yield json.dumps(head, ensure_ascii=False, indent=1)[:-2] + ',\n "findings": ['
    comma = ""
    for name in found.findings.checks():
        for finding in found.findings.of(name):
            yield comma + "\n  " + json.dumps({"check": name, **asdict(finding)}, ensure_ascii=False)
            comma = ","
    yield "\n ]\n}\n"


def check_of(checked: Checked, name: str) -> Any:
    """The check of the data or of the rendered rows with this name: for its title, and what ``--fix`` does."""
    return checked.found.checks.get(name) or load("tunesmith.render.checks", name).Check


def _tokens_dict(look: TokenPass, max_length: int) -> dict[str, Any]:
    """The figures of the lengths, and how they are spread: ``[from, up to but not including, rows]``."""
    return {**look.summary(), "bins": bins(look.lengths, max_length)}
