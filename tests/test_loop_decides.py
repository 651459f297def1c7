"""What the loop decides by itself: spikes, early stopping, which checkpoints stay, and that a resumed run decides the same."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from tiny_loop import Number, Said, resume_of, tiny_setup
from tunesmith.config.errors import TrainingError
from tunesmith.runs.folder import RunFolder
from tunesmith.train import guards, random_state
from tunesmith.train.checkpoint_files import newest_whole
from tunesmith.train.guards import Recent
from tunesmith.train.loop import train
from tunesmith.train.meter import Meter
from tunesmith.train.order import Order

REAL = Path(__file__).parent / "recorded" / "noisy_run.json"
ROWS = [Number(1.0 + 0.1 * (i % 7), i) for i in range(40)]
WILD = [*ROWS[:39], Number(-300.0, 39)]
SEED = next(seed for seed in range(99) if Order([10] * 40, 1, seed).rows(30) == [39])
"""With it the wild row is that of step 30."""


def new_run(tmp_path: Path, name: str = "r") -> RunFolder:
    return RunFolder.create("model: x\n", name, tmp_path / "runs")


def steps(run: RunFolder) -> list[dict[str, float]]:
    return [
        {k: v for k, v in r.items() if k in ("step", "loss", "spike", "skipped")}
        for r in run.metrics()
        if r["kind"] == "step"
    ]


def spikes(losses: list[float], norms: list[float]) -> list[int]:
    recent, found = Recent(), []
    for i, (loss, norm) in enumerate(zip(losses, norms)):
        spike = recent.spike(loss, norm)
        recent = recent.after(loss, norm, spike)
        found += [i] if spike else []
    return found


def test_an_ordinary_noisy_run_raises_no_alarm_and_a_spike_in_it_does() -> None:
    """The losses and norms of a real run (SmolLM2-135M, LoRA) with one conversation per step, as noisy as it gets."""
    real = json.loads(REAL.read_text())
    losses, norms = real["loss"], real["grad_norm"]
    assert len(losses) >= 61 and max(losses) > 2 * min(losses)
    assert spikes(losses, norms) == []
    with_spike = [*losses[:50], 4 * max(losses), *losses[50:]]
    assert spikes(with_spike, [*norms[:50], norms[50], *norms[50:]]) == [50]
    assert spikes([*losses[:50], losses[50], *losses[50:]], [*norms[:50], 100 * max(norms), *norms[50:]]) == [50]


@pytest.mark.parametrize("kind", ["normal", "exponential", "falling"])
def test_noise_of_any_kind_is_no_spike(kind: str) -> None:
    draw = random.Random(0)
    noise = {
        "normal": lambda i: 2 + draw.gauss(0, 0.3), "exponential": lambda i: draw.expovariate(1.0),
        "falling": lambda i: 4 * math.exp(-i / 300) + draw.gauss(0, 0.2),
    }[kind]  # fmt: skip
    found = spikes([noise(i) for i in range(2000)], [math.exp(draw.gauss(0, 0.5)) for _ in range(2000)])
    assert len(found) <= (3 if kind == "exponential" else 0), "longer tails than a mean over tokens has"


def test_a_new_level_is_taken_for_one_after_some_steps() -> None:
    found = spikes([1.0 + 0.01 * (i % 5) for i in range(50)] + [9.0 + 0.01 * (i % 5) for i in range(100)], [1.0] * 150)
    assert found == list(range(50, 50 + guards.MOST_IN_A_ROW))


def test_a_spike_is_said_left_out_or_stopped_at(tmp_path: Path) -> None:
    said = {action: Said() for action in ("warn", "skip", "stop")}
    runs = {action: new_run(tmp_path, action) for action in said}
    for action in ("warn", "skip"):
        train(tiny_setup(runs[action], WILD, epochs=1, seed=SEED, on_spike=action), progress=said[action])
    at = next(r["step"] for r in steps(runs["warn"]) if "spike" in r)
    with pytest.raises(TrainingError, match=rf"step {at}: the loss leapt to .* numbers.jsonl:39") as caught:
        train(tiny_setup(runs["stop"], WILD, epochs=1, seed=SEED, on_spike="stop"), progress=said["stop"])
    assert "resuming" in str(caught.value) and runs["stop"].checkpoint_steps() == []
    for action, words in (("warn", "the step is taken"), ("skip", "the step is left out")):
        line = next(line for line in said[action].lines if "leapt" in line)
        assert words in line and "numbers.jsonl:39" in line and "learning rate 1.0e-02" in line
    warned, skipped = steps(runs["warn"]), steps(runs["skip"])
    assert [r["skipped"] for r in warned + skipped if "spike" in r] == [False, True]
    assert [r["loss"] for r in warned[:at]] == [r["loss"] for r in skipped[:at]]
    assert warned[at]["loss"] != skipped[at]["loss"], "leaving the step out changed nothing"


def test_resumed_before_a_spike_it_is_the_same_spike(tmp_path: Path) -> None:
    """Resumed one step before the spike, from the window in the checkpoint; the sums of the noise agree, so the random state does."""
    whole, cut = new_run(tmp_path, "whole"), new_run(tmp_path, "cut")
    settings = {"epochs": 1, "seed": SEED, "on_spike": "skip", "save_every": 1, "keep": 50}
    train(tiny_setup(whole, WILD, **settings))
    at = next(r["step"] for r in steps(whole) if "spike" in r)
    train(tiny_setup(cut, WILD, **settings))
    position = train(tiny_setup(cut, WILD, **settings), resume=resume_of(cut, int(at) - 1)).position
    assert steps(cut) == steps(whole) and position.step == 40
    last = [json.loads((run.checkpoint() / "trainer.json").read_text()) for run in (whole, cut)]
    assert last[0] == last[1]


def test_early_stopping_keeps_the_best_and_stays_stopped(tmp_path: Path) -> None:
    """The held-out row wants 0.1, the others more: the loss falls, then rises for good."""
    run = new_run(tmp_path)
    settings = {"epochs": 9, "eval_every": 2, "save_every": 3, "keep": 1, "early_stopping": 3, "lr": 0.02}
    outcome = train(tiny_setup(run, ROWS, [Number(0.1, 99)], **settings))
    position = outcome.position
    measured = {r["step"]: r["eval_loss"] for r in run.metrics() if r["kind"] == "eval"}
    best = min((s for s in measured if s), key=lambda s: measured[s])
    assert outcome.finished and "stopped early" in outcome.note and position.step == best + 6 < outcome.total_steps
    assert position.best_step == best and run.checkpoint_steps() == [best, position.step]
    assert run.best_step() == best and run.best_checkpoint().name == f"step-{best}"
    assert position.result()["best_step"] == best
    again = train(tiny_setup(run, ROWS, [Number(0.1, 99)], **settings), resume=resume_of(run))
    assert again.position == position and again.note == outcome.note, "a crash before the last status changes nothing"
    more = train(tiny_setup(run, ROWS, [Number(0.1, 99)], **settings | {"early_stopping": 4}), resume=resume_of(run))
    assert more.position.step == position.step + 2


def test_a_minute_has_passed(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    train(tiny_setup(run, ROWS, max_steps=4, save_minutes=1e-9, keep=9))
    assert run.checkpoint_steps() == [1, 2, 3, 4]


def test_another_plan_and_another_machine_are_said(tmp_path: Path) -> None:
    run, said = new_run(tmp_path), Said()
    train(tiny_setup(run, ROWS, max_steps=5, schedule="linear"))
    place = run.checkpoint() / "trainer.json"
    record = json.loads(place.read_text())
    assert record["total_steps"] == 5 and record["machine"]["torch"] == torch.__version__
    record["machine"] |= {"device": "cuda", "name": "H200", "threads": 99}
    place.write_text(json.dumps(record))
    outcome = train(tiny_setup(run, ROWS, max_steps=20, schedule="linear"), resume=resume_of(run), progress=said)
    text = "\n".join(said.lines)
    assert outcome.position.step == 20 and "device cuda -> cpu" in text and "no longer bit for bit" in text
    assert (
        "the run now has 20 steps, it was planned with 5" in text
        and "It was 2.00e-03 at step 5, and goes on with 7.50e-03" in text
    )


@pytest.mark.parametrize("harm", ["cut off", "a changed byte", "missing", "no record"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_taken(tmp_path: Path, harm: str) -> None:
    run, said = new_run(tmp_path), Said()
    train(tiny_setup(run, ROWS, max_steps=4, save_every=2))
    place = run.checkpoint() / ("trainer.json" if harm == "no record" else "optimizer.safetensors")
    data = place.read_bytes()
    place.write_bytes(data[:-7] if harm == "cut off" else data[:-1] + bytes([data[-1] ^ 1]))
    if harm in ("missing", "no record"):
        place.unlink()
    found = newest_whole(run, said)
    assert found is not None and found.name == "step-2" and run.checkpoint_steps() == [2]
    assert "step 4 is damaged" in said.lines[0] and (run.checkpoints / "damaged-step-4").is_dir()
    (found / "adapter_model.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"no checkpoint of run .* is whole"):
            newest_whole(run, said)


def test_checkpoints_of_older_versions_go_on(tmp_path: Path) -> None:
    """Without list of files, machine, plan and the newer counters; cut off ones are noticed all the same."""
    run, said = new_run(tmp_path), Said()
    train(tiny_setup(run, ROWS, [Number(1.0)], max_steps=4, save_every=2))
    for folder in run.checkpoints.iterdir():
        record = json.loads((folder / "trainer.json").read_text())
        position = {k: record["position"][k] for k in ("step", "tokens", "best_eval", "last")}
        (folder / "trainer.json").write_text(
            json.dumps({"position": position, "random": record["random"], "optimizer": record["optimizer"]})
        )
    assert newest_whole(run, said) == run.checkpoint(4) and not said.lines
    outcome = train(tiny_setup(run, ROWS, [Number(1.0)], max_steps=6, eval_every=2), resume=resume_of(run))
    assert outcome.finished and outcome.position.best_step == 6
    place = run.checkpoint(6) / "optimizer.safetensors"
    record = json.loads((place.parent / "trainer.json").read_text())
    record.pop("files")
    (place.parent / "trainer.json").write_text(json.dumps(record))
    place.write_bytes(place.read_bytes()[:-1])
    assert newest_whole(run, said) == run.checkpoint(4)


def test_nothing_that_could_be_learned_is_said(tmp_path: Path) -> None:
    frozen = tiny_setup(new_run(tmp_path), ROWS)
    frozen.masters.pairs.clear()
    with pytest.raises(TrainingError, match="no weight is learned"):
        train(frozen)
    still = tiny_setup(new_run(tmp_path), ROWS)
    still.optimizer.param_groups[0]["lr_scale"] = 0.0
    with pytest.raises(TrainingError, match="multiplied by 0"):
        train(still)
    said, flat = Said(), [Number(0.0, i, loss_times=0.0) for i in range(20)]
    with pytest.raises(TrainingError, match="exactly zero in the first 5 steps"):
        train(tiny_setup(new_run(tmp_path), flat), progress=said)
    assert "step 1: the gradient is exactly zero" in said.lines[0]
    assert "65504" in str(guards.non_finite(math.nan, 5, 1e-4, ROWS, dtype=torch.float16))


def test_what_is_drawn_beside_training_does_not_change_it() -> None:
    torch.manual_seed(1)
    random.seed(1)
    before = random_state.dump()
    with random_state.untouched():
        torch.manual_seed(7)
        torch.rand(5)
        random.random()
    assert random_state.dump() == before


def test_a_full_disk_is_said_for_samples_and_status(tmp_path: Path) -> None:
    from tunesmith.train.recording import record_samples, record_status

    run = new_run(tmp_path)
    (run.path / "artifacts").write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match=r"samples of step 3 could not be written[\s\S]*are whole"):
        record_samples(run, 3, [("a", "b")])
    gone = RunFolder(tmp_path / "runs" / "gone")
    gone.path.write_text("no folder")
    with pytest.raises(TrainingError, match="state of the run could not be written"):
        record_status(gone, step=1)


def test_the_meter_does_not_count_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 tokens in 2 s, a pause of 50 s, 100 tokens in 2 s: 50 tokens/s, and 6 s for 300 more; 6e3 of 1e6 FLOP/s."""
    clock = iter([0.0, 2.0, 2.0, 52.0, 54.0, 54.0])
    monkeypatch.setattr("tunesmith.train.meter.time.monotonic", lambda: next(clock))
    meter = Meter(500, flops=120.0, peak=1e6)
    meter.step(100)
    with meter.paused():
        pass
    meter.step(100)
    assert (meter.speed, meter.seconds_left, meter.mfu) == (50.0, 6.0, pytest.approx(0.006))
    assert Meter(1).mfu is None
