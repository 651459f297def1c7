"""The loop against plain loops: the same losses, whatever the packing and the accumulation, and golden figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model_fixtures import FAMILIES, make_model
from tunesmith.config.errors import TrainingError
from tunesmith.models.methods import lora
from tunesmith.models.open import open_model, open_tokenizer
from tunesmith.render.conversation import Renderer
from tunesmith.runs.folder import RunFolder
from tunesmith.stages import sft
from tunesmith.train.config import TrainConfig
from tunesmith.train.evaluation import evaluate
from tunesmith.train.loop import train
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers import adamw
from tunesmith.train.optimizers.base import parameter_groups
from tunesmith.train.order import Order
from tunesmith.train.schedule import learning_rate
from tunesmith.train.setup import Setup

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


def rows_for(folder: Path, count: int = 12) -> tuple[sft.Sft, list[sft.Row]]:
    from tunesmith.data.config import DataConfig
    from tunesmith.data.load import load

    stage = sft.build(sft.Config(), Renderer(open_tokenizer(folder), max_length=512))
    examples = load(DataConfig(train=("lantern_bay",), eval_share=0), seed=0).train[:count]
    return stage, [stage.encode(e) for e in examples]


def setup(
    folder: Path, run: RunFolder, config: TrainConfig, *, dtype: torch.dtype = torch.float32, evals: int = 0
) -> Setup:
    stage, rows = rows_for(folder)
    torch.manual_seed(0)
    model = open_model(folder, dtype=dtype, device=CPU, attention="varlen" if config.packing else "sdpa")
    model = lora.apply(model, lora.Config(rank=4), base_name=str(folder))
    masters = Masters(model, dtype)
    groups = parameter_groups(masters.named(), lr=config.lr, weight_decay=config.weight_decay)
    return Setup(
        model=model, stage=stage, train=rows[evals:], eval=rows[:evals], config=config, run=run, masters=masters,
        optimizer=adamw.build(groups, adamw.Config()),
        micro_tokens=config.micro_tokens or 512, save_model=lambda to, state: lora.save(model, to, state),
    )  # fmt: skip


def losses(run: RunFolder) -> list[float]:
    return [r["loss"] for r in run.metrics() if r["kind"] == "step"]


def new_run(tmp_path: Path, name: str = "r") -> RunFolder:
    return RunFolder.create("model: x\n", name, tmp_path / "runs")


CONFIG = TrainConfig(epochs=2, batch=4, lr=5e-3, warmup=0.2, micro_tokens=300)


def run_once(folder: Path, tmp_path: Path, name: str, **changes: Any) -> list[float]:
    config = CONFIG.model_copy(update=changes)
    made = setup(folder, new_run(tmp_path, name), config)
    train(made)
    return losses(made.run)


@pytest.mark.parametrize(
    "family", [f if f in ("llama", "gemma3") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_packed_equals_padded(few: Path, tmp_path: Path, family: str) -> None:
    """Four optimizer steps on every family: packing changes the computation, not the losses."""
    folder = make_model(few, tmp_path / family, family)
    packed = run_once(folder, tmp_path, "packed", max_steps=4)
    padded = run_once(folder, tmp_path, "padded", max_steps=4, packing=False)
    assert packed == pytest.approx(padded, abs=2e-4), family
    assert abs(packed[0] - packed[-1]) > 1e-3, "nothing was learned, so nothing was compared"


def test_accumulation_equals_one_batch(tiny: Path, tmp_path: Path) -> None:
    many = run_once(tiny, tmp_path, "many", micro_tokens=16)
    one = run_once(tiny, tmp_path, "one", micro_tokens=100_000)
    assert many == pytest.approx(one, abs=1e-4)


def test_gradient_checkpointing_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    from tunesmith.models.checkpointing import checkpoint_layers, decoder_layers

    plain = run_once(tiny, tmp_path, "plain")
    made = setup(tiny, new_run(tmp_path, "saving"), CONFIG)
    layers = decoder_layers(made.model)
    checkpoint_layers(layers, len(layers))
    calls = []
    norm = made.model.base_model.model.model.layers[0].input_layernorm
    norm.register_forward_hook(lambda *_: calls.append(1))
    train(made)
    assert losses(made.run) == pytest.approx(plain, abs=1e-5)
    micro = sum(len(_micro(made, step)) for step in range(1, 7))
    assert len(calls) == 2 * micro, "each layer begins twice: forward, and again in backward"


def _micro(made: Setup, step: int) -> list[list[int]]:
    from tunesmith.stages.base import lengths_of, micro_batches

    rows = [made.train[i] for i in Order(lengths_of(made.train), CONFIG.batch, CONFIG.seed).rows(step)]
    return micro_batches(rows, made.micro_tokens, packed=True)


def test_equals_a_plain_transformers_and_peft_loop(tiny: Path, tmp_path: Path) -> None:
    """Loss per step equal to a loop that anybody would write with transformers and peft, padded, on the same batches."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    ours = run_once(tiny, tmp_path, "ours")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=CONFIG.lr, weight_decay=0.0)
    _, rows = rows_for(tiny)
    order = Order([row.length for row in rows], CONFIG.batch, CONFIG.seed)
    steps = order.total(CONFIG.epochs)
    theirs = []
    for step in range(1, steps + 1):
        batch = [rows[i] for i in order.rows(step)]
        longest = max(r.length for r in batch)
        ids = torch.tensor([[*r.ids.tolist(), *[2] * (longest - r.length)] for r in batch])
        attention = torch.tensor([[1] * r.length + [0] * (longest - r.length) for r in batch])
        labels = torch.tensor(
            [[t if m else -100 for t, m in zip(r.ids.tolist(), r.mask)] + [-100] * (longest - r.length) for r in batch]
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, CONFIG.lr, CONFIG.schedule, CONFIG.warmup)
        loss = model(input_ids=ids, attention_mask=attention, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.clip)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert theirs[0] - theirs[-1] > 0.05


def test_bf16_learns_through_its_masters(tiny: Path, tmp_path: Path) -> None:
    """With a learning rate whose updates vanish in bf16, the fp32 masters still move, and bf16 follows fp32 closely."""
    full = run_once(tiny, tmp_path, "fp32")
    made = setup(tiny, new_run(tmp_path, "bf16"), CONFIG, dtype=torch.bfloat16)
    train(made)
    assert losses(made.run) == pytest.approx(full, rel=0.02)
    for parameter, master in made.masters.pairs.values():
        assert parameter.dtype == torch.bfloat16 and master.dtype == torch.float32
        assert torch.equal(parameter, master.to(torch.bfloat16))
    assert any(not torch.equal(m, m.to(torch.bfloat16).float()) for _, m in made.masters.pairs.values())


def test_the_adapter_is_peft_s_own(tiny: Path, tmp_path: Path) -> None:
    """peft alone loads what was saved, and gives the evaluation loss that the loop measured."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = setup(tiny, new_run(tmp_path), CONFIG, evals=3)
    outcome = train(made)
    assert outcome.finished
    folder = made.run.checkpoint()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), str(folder))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny)
    loss = evaluate(model, made.stage, made.eval, 512, packed=False)
    assert loss == pytest.approx(outcome.position.last["eval_loss"], abs=1e-4)


def test_a_non_finite_loss_stops_with_a_diagnosis(tiny: Path, tmp_path: Path) -> None:
    made = setup(tiny, new_run(tmp_path), CONFIG.model_copy(update={"lr": 1e30, "clip": 0.0, "warmup": 0.0}))
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step \d+ \(rows .*row \d+"):
        train(made)
    assert all(loss == loss for loss in losses(made.run))


def test_metrics_and_status_tell_the_story(tiny: Path, tmp_path: Path) -> None:
    made = setup(tiny, new_run(tmp_path), CONFIG, evals=3)
    train(made)
    records = made.run.metrics()
    steps = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 7))
    assert all(r["tokens"] > 0 and r["tokens_per_s"] > 0 and r["grad_norm"] > 0 and r["memory"] > 0 for r in steps)
    assert [r["step"] for r in records if r["kind"] == "eval"] == [0, 3, 6]
    assert made.run.status().step == 6 and made.run.checkpoint_steps() == [3, 6]
