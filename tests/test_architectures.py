"""Every architecture × every method: two steps, saved, reopened by transformers and peft alone, merged; the same logits all the way.

The models are random, of 2 layers (tests/families.py): what is tested is that nothing in the way from rows to a merged model depends on
one family's code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from families import FAMILIES, WORDS, make_family, save_tokenizer
from tunesmith.export.targets import hf
from tunesmith.models.methods import freeze, full, lora
from tunesmith.models.open import open_model
from tunesmith.models.packing_probe import chunks_are_counted_within_conversations, why_not_packed
from tunesmith.models.router_loss import has_router_loss, with_router_loss
from tunesmith.models.trained import load_trained
from tunesmith.runs.folder import RunFolder
from tunesmith.stages import sft
from tunesmith.train.config import TrainConfig
from tunesmith.train.loop import train
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers import adamw
from tunesmith.train.optimizers.base import parameter_groups
from tunesmith.train.setup import Setup

CPU = torch.device("cpu")
UNPACKED = {"stablelm", "mamba", "jamba", "lfm2", "qwen3_next"}
"""Whose code does not keep packed conversations apart, with the libraries of this test."""
if not chunks_are_counted_within_conversations():
    UNPACKED.add("llama4")
if Version(transformers.__version__) < Version("5.24"):  # its layers did not hear where a conversation ends
    UNPACKED |= {"falcon", "falcon-alibi"}
ROUTED = ("mixtral", "qwen3_moe", "gpt_oss")
STAGE = sft.Sft(batches=None, pad_id=0)  # type: ignore[arg-type]
LENGTHS = (5, 23, 9, 14)


def some_rows(count: int = 4, seed: int = 0) -> list[sft.Row]:
    numbers = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        length = LENGTHS[i % len(LENGTHS)]
        ids = numbers.integers(6, len(WORDS), length).astype(np.uint32)
        rows.append(sft.Row(ids, np.arange(length) >= 2, f"made:{i}"))
    return rows


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's model, made once."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        return root / family if (root / family).exists() else make_family(root / family, family)

    return folder


def plain(folder: Path) -> Any:
    """What transformers makes of a folder by itself, with its plainest attention."""
    from transformers import AutoModelForCausalLM

    eager = json.loads((folder / "config.json").read_text())["model_type"] != "falcon"  # its two differ with alibi
    how = "eager" if eager else "sdpa"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=how).eval()


def logits(model: Any) -> torch.Tensor:
    """Of every token of a few rows, each alone and without padding."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        rows = [torch.from_numpy(row.ids.astype(np.int64))[None] for row in some_rows(seed=9)]
        found = torch.cat([model(input_ids=ids, use_cache=False).logits[0] for ids in rows])
    model.train(was_training)
    return found


def close(one: torch.Tensor, other: torch.Tensor, bound: float = 2e-5) -> bool:
    """Whether the largest difference is rounding, measured by the spread of the logits."""
    return bool((one - other).abs().max() <= bound * other.std())


def gradients(model: Any, packed: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of all weights, in one micro-batch."""
    model.requires_grad_(True)
    model.zero_grad()
    rows = some_rows()
    loss = STAGE.loss(model, STAGE.collate(rows, packed=packed))
    loss.total.backward()
    return float(loss.total.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_padded_are_rows_alone(folders: Callable[[str], Path], family: str) -> None:
    """Losses and the gradient of every weight: packed = padded = one row at a time with transformers' own attention."""
    model = open_model(folders(family), dtype=torch.float32, device=CPU)
    why = why_not_packed(model, max(LENGTHS))
    assert (why is not None) == (family in UNPACKED), why
    alone = plain(folders(family))
    expected: dict[str, torch.Tensor] = {}
    total = 0.0
    for row in some_rows():
        loss, found = _row_alone(alone, row)
        total += loss
        expected = {name: expected.get(name, 0) + grad for name, grad in found.items()}
    for packed in (False, True) if why is None else (False,):
        loss, found = gradients(model, packed)
        assert loss == pytest.approx(total, rel=2e-6), packed
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            scale = max(float(expected[name].abs().max()), 1e-3)
            assert float((gradient - expected[name]).abs().max()) < 2e-4 * scale, (name, packed)


def _row_alone(model: Any, row: sft.Row) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    ids = torch.from_numpy(row.ids.astype(np.int64))[None]
    found = model(input_ids=ids, use_cache=False).logits[0, :-1]
    learned = torch.from_numpy(row.mask[1:])
    loss = torch.nn.functional.cross_entropy(found[learned], ids[0, 1:][learned], reduction="sum")
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@dataclass(frozen=True)
class Method:
    """How a method is applied in this test, and how its checkpoint is opened: by peft or transformers alone where it can be."""

    module: Any
    config: Any
    reopen: Callable[[Path, Path], Any]


def _peft(base: Path, checkpoint: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(plain(base), str(checkpoint)).eval()


METHODS = {
    "lora": Method(lora, lora.Config(rank=4), _peft),
    "experts": Method(lora, lora.Config(rank=2, experts=True), _peft),
    "full": Method(full, full.Config(), lambda base, checkpoint: plain(checkpoint)),
    "freeze": Method(freeze, freeze.Config(layers=1), lambda base, checkpoint: load_trained(plain(base), checkpoint)),
}
TARGETS = {"mamba": ("in_proj", "x_proj")}
"""Where peft refuses some of the linear layers."""
ROUNDING = {"mamba": 2e-4}
"""Whose recurrence makes the rounding of merged weights larger than usual; peft's own merge differs as much."""
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
OFTEN = {(f, m) for i, f in enumerate(FAMILIES) for m in ("lora", "experts", ("full", "freeze")[i % 2])}
"""Every family with LoRA and one of the others; the rest is run with the slow tests."""
CASES = [
    pytest.param(f, m, marks=[] if (f, m) in OFTEN else pytest.mark.slow)
    for f in FAMILIES
    for m in METHODS
    if m != "experts" or f in EXPERTS
]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_trained_saved_reopened_and_merged(
    folders: Callable[[str], Path], tmp_path: Path, family: str, name: str
) -> None:
    base, method = folders(family), METHODS[name]
    if family in TARGETS and name == "lora":
        method = replace(method, config=lora.Config(rank=4, targets=TARGETS[family]))
    made = setup(base, method, tmp_path, packing=family not in UNPACKED)
    before = logits(made.model)
    assert train(made).finished
    trained = logits(made.model)
    assert not close(trained, before, 1e-2), "nothing was learned"
    checkpoint = made.run.checkpoint()
    assert close(logits(method.reopen(base, checkpoint)), trained), "reopened"
    merged = hf.export(checkpoint, tmp_path / "merged", hf.Config(), **({} if name == "full" else {"base": base})).out
    bound = ROUNDING.get(family, 2e-5)
    assert close(logits(plain(merged)), trained, bound), "merged by our export"
    if name in ("lora", "experts"):
        assert close(logits(_peft(base, checkpoint).merge_and_unload()), trained, bound), "merged by peft"


def setup(base: Path, method: Method, tmp_path: Path, *, packing: bool = True, **changes: Any) -> Setup:
    config = TrainConfig(batch=2, max_steps=2, lr=1e-2, warmup=0, schedule="constant", packing=packing).model_copy(
        update=changes
    )
    torch.manual_seed(0)
    model = open_model(base, dtype=torch.float32, device=CPU)
    model = method.module.apply(model, method.config, base_name=str(base))
    masters = Masters(model, torch.float32)
    groups = parameter_groups(masters.named(), lr=config.lr, weight_decay=0.0)

    def save(folder: Path, state: dict[str, torch.Tensor]) -> None:
        method.module.save(model, folder, state)
        save_tokenizer(folder)

    return Setup(
        model=model, stage=with_router_loss(STAGE, model, config.router_loss), train=some_rows(), eval=[], config=config,
        run=RunFolder.create("model: x\n", "r", tmp_path / "runs"), masters=masters, micro_tokens=64,
        optimizer=adamw.build(groups, adamw.Config()),
        save_model=save,
    )  # fmt: skip


@pytest.mark.parametrize("family", ROUTED)
def test_the_router_loss_is_transformers_own(folders: Callable[[str], Path], family: str) -> None:
    """Of one padded micro-batch: the loss transformers gives for the same labels, its router loss included, with its coefficient."""
    model = open_model(folders(family), dtype=torch.float32, device=CPU).train()
    assert has_router_loss(model)
    rows = some_rows()
    for coefficient in (None, 0.5):
        batch = STAGE.collate(rows, packed=False)
        loss = with_router_loss(STAGE, model, coefficient).loss(model, batch)
        theirs = model.config.router_aux_loss_coef if coefficient is None else coefficient
        labels = torch.cat([torch.full((len(rows), 1), -100), batch.labels_BT[:, :-1]], 1)  # they shift them themselves
        output = model(
            input_ids=batch.ids_BT, attention_mask=batch.attention_BT, labels=labels, output_router_logits=True
        )
        router = output.aux_loss
        cross_entropy = output.loss - model.config.router_aux_loss_coef * router
        assert float(loss.total.detach() / loss.weight) == pytest.approx(
            float((cross_entropy + theirs * router).detach()), rel=1e-5
        )
        total, count = loss.metrics["router_loss"]
        assert float(total) / count == pytest.approx(float(router.detach()), rel=1e-5) and float(total) > 0
    assert with_router_loss(STAGE, model, 0.0) is STAGE
    model.eval()
    assert "router_loss" not in with_router_loss(STAGE, model, None).loss(model, batch).metrics, "not in evaluation"


@pytest.mark.parametrize("family", ROUTED)
def test_padding_has_no_part_in_the_router_loss(folders: Callable[[str], Path], family: str) -> None:
    """Packed (no padding there is) = padded = with activations computed again; and it reaches the weights before the router."""
    from tunesmith.models.checkpointing import checkpoint_layers, decoder_layers

    values, reached = [], []
    for packed, again in ((True, False), (False, False), (True, True)):
        model = open_model(folders(family), dtype=torch.float32, device=CPU).train()
        if again:
            layers = decoder_layers(model)
            checkpoint_layers(layers, len(layers))
        loss = with_router_loss(STAGE, model, 1.0).loss(model, STAGE.collate(some_rows(), packed=packed))
        loss.total.backward()
        values.append(float(loss.metrics["router_loss"][0]))
        reached.append(model.get_input_embeddings().weight.grad)
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)
    for other in reached[1:]:
        torch.testing.assert_close(reached[0], other, rtol=1e-3, atol=1e-4)


def test_a_model_without_routers_is_left_alone(folders: Callable[[str], Path]) -> None:
    model = open_model(folders("llama"), dtype=torch.float32, device=CPU)
    assert with_router_loss(STAGE, model, 0.5) is STAGE


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "granitemoe", "gpt_oss", "deepseek_v3", "llama4"])
def test_the_router_is_frozen_under_lora(folders: Callable[[str], Path], family: str) -> None:
    """Adapters of all linear layers and of the experts leave the layer that chooses the experts as it is."""
    model = open_model(folders(family), dtype=torch.float32, device=CPU)
    model = lora.apply(model, lora.Config(rank=2), base_name="x")
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learned and not [name for name in learned if ".gate." in name or "router" in name]


def test_many_micro_batches_weigh_as_one_in_the_router_loss(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """With rows that are all the same every micro-batch has the same router loss, and 4 x 1 must equal 1 x 4."""
    losses = []
    for name, micro in (("one", 64), ("four", 16)):
        made = setup(folders("mixtral"), METHODS["full"], tmp_path / name, batch=4, max_steps=3, router_loss=0.5)
        made = replace(made, train=[some_rows()[3]] * 4, micro_tokens=micro)
        train(made)
        losses.append([record["loss"] for record in made.run.metrics() if record["kind"] == "step"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_layer_that_hides_its_window_is_found(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few tokens to fill the window, yet rows longer than it are not packed."""
    from transformers.models.mistral.modeling_mistral import MistralAttention

    model = open_model(folders("mistral"), dtype=torch.float32, device=CPU)
    model.config.sliding_window = 16
    assert why_not_packed(model, 100) is None
    plain_forward = MistralAttention.forward

    def hidden(self: Any, *given: Any, **named: Any) -> Any:
        self.config.sliding_window, kept = None, self.config.sliding_window
        try:
            return plain_forward(self, *given, **named)
        finally:
            self.config.sliding_window = kept

    monkeypatch.setattr(MistralAttention, "forward", hidden)
    assert "window of 16 tokens" in str(why_not_packed(model, 100))
    assert why_not_packed(model, 16) is None, "no row is longer than the window"


def test_a_run_says_that_packing_is_off(folders: Callable[[str], Path]) -> None:
    from tunesmith.config.progress import SILENT
    from tunesmith.verbs.run_config import load_config
    from tunesmith.verbs.train import create, execute

    settings = ["data=lantern_bay", "data.limit=4", "data.eval_share=0", "train.max_steps=1", "precision=fp32"]
    said = {}
    for family in ("stablelm", "llama"):
        run = execute(
            create(load_config(None, [f"model={folders(family)}", f"output.name={family}", *settings])), SILENT
        )
        said[family] = run.log_path.read_text(encoding="utf-8")
    assert "packing is off for this model: what stands before a conversation" in said["stablelm"]
    assert "packing is off" not in said["llama"]
