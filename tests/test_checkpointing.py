"""Layers that are computed twice: the same numbers on every family, the memory that was foretold, and no layer too many."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from model_fixtures import SMALL, make_model
from tunesmith.config.errors import TrainingError
from tunesmith.config.progress import SILENT
from tunesmith.models.activations import Activations, measure
from tunesmith.models.checkpointing import checkpoint_layers, decoder_layers, offload_layers
from tunesmith.models.devices import Memory
from tunesmith.models.methods import lora
from tunesmith.models.offload import Offload
from tunesmith.runs.folder import RunFolder
from tunesmith.stages import sft
from tunesmith.train import memory
from tunesmith.train.footprint import Footprint
from tunesmith.verbs.run_config import config_of_run, load_config
from tunesmith.verbs.train import create, execute

CPU = torch.device("cpu")
LAYERS = 4
GIB = 1 << 30
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}), "qwen2": ("Qwen2", {}), "qwen3": ("Qwen3", {}), "mistral": ("Mistral", {}), "phi3": ("Phi3", {}),
    "gemma2": ("Gemma2", {}), "olmo2": ("Olmo2", {}), "granite": ("Granite", {}), "falcon": ("Falcon", {}), "gpt2": ("GPT2", {"n_layer": 2}),
    "gpt-neox": ("GPTNeoX", {}), "mixtral": ("Mixtral", {"num_local_experts": 2}),
    "qwen3-moe": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
}  # fmt: skip


def family(name: str) -> Any:
    """A small model of a family, in training mode."""
    stem, settings = FAMILIES[name]
    common = {key: value for key, value in SMALL.items() if key != "head_dim"} | {"vocab_size": 64}
    config = getattr(transformers, f"{stem}Config")(**common | settings)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).train()


def multimodal() -> Any:
    """Gemma 3 with eyes: its vision tower has layers as well, and more of them."""
    text = SMALL | {"vocab_size": 64, "sliding_window": 32}
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return transformers.Gemma3ForConditionalGeneration(config)


def gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a sum of logits, by name."""
    model.zero_grad()
    torch.manual_seed(1)
    model(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def computed(layers: list[torch.nn.Module]) -> list[int]:
    """How often each layer was begun, kept up to date by hooks on a part of it (outside of the layer's own hooks)."""
    counts = [0] * len(layers)

    def count(number: int) -> Callable[..., None]:
        def add(*_: Any) -> None:
            counts[number] += 1

        return add

    for number, layer in enumerate(layers):
        part = next(module for name, module in layer.named_modules() if "norm" in name or name.startswith("ln"))
        part.register_forward_hook(count(number))
    return counts


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_of_two_layers_is_computed_twice_with_the_same_gradients(name: str) -> None:
    model = family(name)
    ids = torch.randint(64, (2, 24))
    plain = gradients(model, ids)
    layers = decoder_layers(model)
    assert len(layers) == 2
    checkpoint_layers(layers, 1)
    counts = computed(layers)
    assert same(gradients(model, ids), plain)
    assert counts[0] == 2 * counts[1] > 0


def test_the_layers_are_the_text_model_s_under_peft_too() -> None:
    model = multimodal()
    layers = decoder_layers(model)
    assert layers == list(model.model.language_model.layers) and len(layers) == 2
    adapted = lora.apply(family("llama"), lora.Config(rank=2), base_name="x")
    assert decoder_layers(adapted) == list(adapted.base_model.model.model.layers)
    assert decoder_layers(torch.nn.Linear(2, 2)) == []


# -- what it takes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of four layers."""
    return make_model(smol, tmp_path_factory.mktemp("four") / "four", "llama", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def adapted(four: Path) -> Any:
    from tunesmith.models.open import open_model

    torch.manual_seed(0)
    model = open_model(four, dtype=torch.float32, device=CPU, attention="varlen")
    return lora.apply(model, lora.Config(rank=4, dropout=0.1), base_name="x").train()


@pytest.fixture(scope="module")
def batch(four: Path) -> tuple[sft.Sft, sft.Batch]:
    from test_loop import rows_for

    stage, rows = rows_for(four, 8)
    return stage, stage.collate(rows, packed=True)


def allocated_at_most(work: Callable[[], Any]) -> int:
    """Bytes that ``work`` has allocated at one time, as torch's profiler saw them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = peak = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def test_the_peak_is_foretold(adapted: Any, batch: tuple[sft.Sft, sft.Batch]) -> None:
    stage, rows = batch
    layers = decoder_layers(adapted)
    checkpoint_layers(layers, 0)
    state = torch.get_rng_state()
    found = measure(adapted, layers, lambda: stage.loss(adapted, rows))
    assert torch.equal(torch.get_rng_state(), state), "measuring draws no random numbers of the run"

    def work() -> None:
        stage.loss(adapted, rows).total.backward()
        adapted.zero_grad()

    for count in (0, 2, LAYERS):
        checkpoint_layers(layers, count)
        assert found.needed(count) == pytest.approx(allocated_at_most(work), rel=0.03), count


def test_a_pass_that_does_not_fit_is_foretold_from_half_of_it(
    adapted: Any, batch: tuple[sft.Sft, sft.Batch], four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight equal rows; passes of more than two of them run out of memory."""
    from test_loop import rows_for

    stage, rows = rows_for(four, 1)
    held = Footprint(0, 0, 0, 0, 0, 0)
    plan = partial(
        memory.plan, False, adapted, decoder_layers(adapted), stage, [rows * 8], held, micro_tokens=8, packed=True
    )
    expected = plan().activations
    real = sft.Sft.loss

    def loss(self: sft.Sft, model: Any, batch: sft.Batch) -> Any:
        if batch.tokens > 2 * rows[0].length:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, batch)

    monkeypatch.setattr(sft.Sft, "loss", loss)
    assert plan().activations.needed(1) == pytest.approx(expected.needed(1), rel=0.01)


def test_never_a_layer_more_than_needed() -> None:
    """By hand, four layers of 10 bytes whose input takes 2, 5 outside, 3 in the largest tensor, 1 in a layer's widest.

    Turn: 5 + 2n + 10(4 - n) + 6 = 51 - 8n. Second time: 2n + 10 + 3. The larger: 51, 43, 35, 27, 21."""
    found = Activations((10,) * 4, (2,) * 4, outside=5, largest=3, widest=1)
    assert [found.needed(n) for n in range(5)] == [51, 43, 35, 27, 21]
    assert [found.fewest(free) for free in (51, 50, 43, 42, 35, 27, 26, 21)] == [0, 1, 1, 2, 2, 3, 4, 4]
    assert found.fewest(1) == 4, "where nothing suffices, what takes least"


# -- whole runs ---------------------------------------------------------------------------------------------------------

SETTINGS = [
    "data=lantern_bay", "data.limit=8", "data.eval_share=0", "data.max_length=192", "data.date=2026-01-01", "method.rank=4",
    "method.dropout=0.1", "train.max_steps=2", "train.batch=4", "train.micro_tokens=256", "precision=fp32",
]  # fmt: skip


def new_run(model: Path, *more: str) -> RunFolder:
    return create(load_config(None, [f"model={model}", *SETTINGS, *more]))


def losses(run: RunFolder) -> list[float]:
    return [r["loss"] for r in run.metrics() if r["kind"] == "step"]


@pytest.fixture(scope="module")
def planned(four: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, memory.MemoryPlan]:
    """A run with memory in plenty, and its plan."""
    plans: list[memory.MemoryPlan] = []
    real = memory.plan

    def watched(*arguments: Any, **named: Any) -> memory.MemoryPlan:
        plans.append(real(*arguments, **named))
        return plans[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(memory, "plan", watched)
        run = new_run(four)
        execute(run, SILENT)
    return run, plans[0]


@pytest.fixture(scope="module")
def plain(planned: tuple[RunFolder, memory.MemoryPlan]) -> RunFolder:
    """The run with memory in plenty."""
    return planned[0]


def test_auto_computes_nothing_twice_when_it_fits(plain: RunFolder) -> None:
    assert config_of_run(plain).train.gradient_checkpointing == 0
    log = plain.log_path.read_text()
    assert "no checkpointing" in log and "peak memory" in log and "memory: weights 0.0" in log


def test_auto_takes_as_few_layers_as_fit(
    four: Path, planned: tuple[RunFolder, memory.MemoryPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for what two checkpointed layers need and no more, two are; the losses stay the same, and so does the number
    when the run is taken up again with memory in plenty."""
    acts, held = planned[1].activations, planned[1].footprint
    assert planned[1].checkpointed == 0 and acts.needed(1) > acts.needed(2)
    free = int(acts.needed(2) / (1 - memory.RESERVE)) + held.to_come + 100
    run = new_run(four)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "memory", lambda device: Memory(0, free, 0, free))
        execute(run, SILENT)
    assert losses(run) == losses(planned[0])
    shutil.rmtree(run.checkpoints)
    seen = _out_of_memory_when(monkeypatch, lambda call: False)
    execute(run, SILENT)
    assert config_of_run(run).train.gradient_checkpointing == 2 and set(seen[1:]) == {2}
    assert run.log_path.read_text().count(f"2 of {LAYERS} layers are computed twice") == 2


def _out_of_memory_when(patch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> list[int]:
    """Every forward pass for learning notes how many layers are checkpointed, and fails where ``fails`` says so."""
    seen: list[int] = []
    real = sft.Sft.loss

    def loss(self: sft.Sft, model: Any, rows: sft.Batch) -> Any:
        result = real(self, model, rows)
        if result.total.grad_fn is not None and model.training:
            count = sum(layer.gradient_checkpointing for layer in decoder_layers(model))  # type: ignore[misc]
            seen.append(count)
            if fails(len(seen)):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return result

    patch.setattr(sft.Sft, "loss", loss)
    return seen


def test_a_step_without_memory_is_repeated_with_more_layers(
    four: Path, plain: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second micro-batch of the first step: with dropout, so that random numbers must be drawn again."""
    run = new_run(four)
    seen = _out_of_memory_when(monkeypatch, lambda call: call == 3)  # the first pass is the measurement
    execute(run, SILENT)
    assert seen[:5] == [0, 0, 0, 1, 1]
    assert losses(run) == losses(plain)
    assert config_of_run(run).train.gradient_checkpointing == 1
    assert f"from now on 1 of {LAYERS} layers are computed twice; the step is repeated" in run.log_path.read_text()


def test_when_nothing_helps_it_is_said_what_takes_how_much(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(four)
    with monkeypatch.context() as patch:
        seen = _out_of_memory_when(patch, lambda call: call > 1)
        with pytest.raises(TrainingError) as caught:
            execute(run, SILENT)
    assert sorted(set(seen)) == list(range(LAYERS + 1)), "every number of layers was tried"
    message = str(caught.value)
    assert "weights 0.0" in message and "activations about" in message and "20.00 GiB" in message
    assert "can be resumed" in message and "train.micro_tokens=" in message
    execute(run, SILENT)
    assert run.status().state == "finished"


def test_false_means_false(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(four, "train.gradient_checkpointing=false")
    seen = _out_of_memory_when(monkeypatch, lambda call: call > 1)
    with pytest.raises(TrainingError, match=r"train\.gradient_checkpointing=true"):
        execute(run, SILENT)
    assert seen == [0, 0]


# -- activations on the CPU ---------------------------------------------------------------------------------------------

DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ),
]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("checkpointed", [0, 1, 2])
def test_offloaded_activations_change_no_bit(device: torch.device, checkpointed: int) -> None:
    """Both ways: inputs of checkpointed layers, and everything that layers keep. On a CPU the copies stay there, so that the
    bookkeeping is tested everywhere."""
    ids = torch.randint(64, (2, 24)).to(device)
    model = family("llama").to(device)
    plain = gradients(model, ids)
    offload = Offload(device, (*model.parameters(), *model.buffers()), smallest=1)
    layers = decoder_layers(model)
    if checkpointed:
        checkpoint_layers(layers, checkpointed, offload)
    else:
        offload_layers(layers, offload)
    assert same(gradients(model, ids), plain)
    hidden = 2 * 24 * SMALL["hidden_size"] * 4
    if checkpointed:
        assert offload.moved == checkpointed * hidden, "the input of each layer, once"
    else:
        assert offload.moved > 10 * hidden


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_one_tensor_is_moved_once_and_weights_never(device: torch.device) -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8, device=device))
    x = torch.randn(8, 8, device=device, requires_grad=True)
    offload = Offload(device, [weight], smallest=1)
    with offload.hooks():
        inner = x * 2
        total = (inner @ weight).sum() + (inner @ weight.t()).sum() + inner.pow(2).sum()
    total.backward()
    assert offload.moved == 8 * 8 * 4
    expected = 2 * (weight.sum(1) + weight.sum(0)).detach() + 8 * x.detach()
    assert x.grad is not None and torch.allclose(x.grad, expected, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it changes something")
def test_on_a_cpu_offloading_says_that_it_changes_nothing(four: Path, plain: RunFolder) -> None:
    run = new_run(four, "train.activation_offload=true")
    execute(run, SILENT)
    assert losses(run) == losses(plain)
    assert "activation_offload changes nothing here" in run.log_path.read_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_is_foretold_on_a_gpu(four: Path, batch: tuple[sft.Sft, sft.Batch]) -> None:
    from tunesmith.models.open import open_model

    stage, rows = batch
    device = torch.device("cuda")
    model = open_model(four, dtype=torch.bfloat16, device=device, attention="varlen").train()
    model = lora.apply(model, lora.Config(rank=4), base_name="x")
    layers = decoder_layers(model)
    stage.loss(model, rows).total.backward()  # libraries take their work space once
    model.zero_grad()
    found = measure(model, layers, lambda: stage.loss(model, rows))
    for count in (0, 2, LAYERS):
        checkpoint_layers(layers, count)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        stage.loss(model, rows).total.backward()
        assert found.needed(count) == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.15), count
        model.zero_grad()
