"""What an unrounded merge holds for embeddings and chains, and what reads what its files say."""

# ruff: noqa: F811 - fixtures of another file

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import learned_runs
from model_fixtures import make_adapter, make_model, peft_merge
from test_unrounded import QUERY, Lines, _shrink, base, run  # noqa: F401 - fixtures
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT
from tunesmith.export.numbers import learned_in
from tunesmith.export.packed_checkpoint import unchanged
from tunesmith.export.targets import fp8, hf
from tunesmith.export.tensor_files import read_header, read_model
from tunesmith.verbs import merged, opening, proof
from tunesmith.verbs.targets import target_of

WRONG = [
    "xx",
    "[1]",
    "null",
    '{"BF16": 5}',
    '{"BF16": [["w"]]}',
    '{"BLA": ["w"]}',
    '{"I64": ["w"]}',
    '{"BF16": "w"}',
    "[" * 100_000,
]


@pytest.mark.parametrize("told", WRONG, ids=range(len(WRONG)))
def test_what_others_wrote_there_says_nothing(told: str, tmp_path: Path) -> None:
    save_file({"w": torch.ones(4, 4)}, tmp_path / "model.safetensors", metadata={"tunesmith.served": told})
    assert read_header(tmp_path / "model.safetensors")["w"].serves is None


def test_lora_on_embeddings_is_not_rounded(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    whole = hf.export(adapter, tmp_path / "whole", hf.Config(), base=base, learned_in="F32").out
    found, want = load_file(whole / "model.safetensors"), peft_merge(base, adapter).state_dict()
    for name in (QUERY, "model.embed_tokens.weight"):
        assert torch.equal(found[name], want[name]), name


def test_a_copy_of_an_unrounded_merge_says_the_same(run: Any, tmp_path: Path) -> None:
    folder = merged.merged_folder(target_of(str(run.path), SILENT), SILENT)
    copy = hf.export(folder, tmp_path / "copy", hf.Config()).out
    assert {n: (t.dtype, t.served) for n, t in read_model(copy).items()} == {
        n: (t.dtype, t.served) for n, t in read_model(folder).items()
    }
    assert '"dtype": "bfloat16"' in (copy / "config.json").read_text(encoding="utf-8")
    coarse = hf.export(folder, tmp_path / "coarse", hf.Config(dtype="bfloat16")).out
    assert {t.dtype for t in read_model(coarse).values()} == {"BF16"} and learned_in(coarse) is None


def test_lost_merge_of_a_base_in_float32_is_refused(few: Path, tmp_path: Path) -> None:
    base = make_model(few, tmp_path / "base", "llama")
    made = learned_runs.train(base, tmp_path / "runs", "small", "method=lora", "method.rank=4")
    for step in made.checkpoint_steps():
        _shrink(made.path / "checkpoints" / f"step-{step}" / "adapter_model.safetensors")
    target = target_of(str(made.path), SILENT)
    lost = Path(shutil.copytree(merged.merged_folder(target, SILENT), tmp_path / "lost"))
    shutil.copyfile(base / "model.safetensors", lost / "model.safetensors")
    with pytest.raises(proof.MergeRefutedError):
        proof.check_merge(target, lost, SILENT)


def test_lost_merge_of_weights_learned_in_bf16_is_refused(base: Path, tmp_path: Path) -> None:
    made = learned_runs.train(base, tmp_path / "runs", "pure", "method=full", "precision=pure_bf16", "train.lr=1e-4")
    target = target_of(str(made.path), SILENT)
    lost = Path(shutil.copytree(merged.merged_folder(target, SILENT), tmp_path / "lost"))
    assert learned_in(lost) is None
    shutil.copyfile(base / "model.safetensors", lost / "model.safetensors")
    with pytest.raises(proof.MergeRefutedError):
        proof.check_merge(target, lost, SILENT)


def test_sixteen_bits_are_those_served(few: Path, tmp_path: Path) -> None:
    """Most bytes of the merge are F32; the 16 bits it may be opened in are the base's."""
    base = make_model(few, tmp_path / "base", "llama", dtype="float16")
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head", "embed_tokens"])
    whole = hf.export(adapter, tmp_path / "whole", hf.Config(), base=base, learned_in="F32").out
    base_of = target_of(str(whole), SILENT)
    found = [w for w in opening.ways(base_of, [(1, 2)], as_trained=False, answers=False) if not isinstance(w, str)]
    assert "fp16" in {way.precision for way in found}
    scale = read_model(fp8.export(whole, tmp_path / "fp8", fp8.Config()).out)[f"{QUERY}_scale"]
    assert scale.dtype == "F16"


def test_small_rows_served_in_float16(tmp_path: Path) -> None:
    """Scales below float16's normal numbers are rounded up although the weight itself is in float32."""
    weight = torch.full((2, 32), 74.2 * 448 * 2**-24)  # nearest would be 74 steps of float16's grid there
    codes, scale = fp8.rounded(weight, "w", "F16")
    exact = fp8.rounded(weight.half(), "w")
    assert scale.dtype == torch.float16 and torch.equal(scale, exact[1]) and bool((codes.float().abs() <= 448).all())


def test_space_of_a_merge_that_was_begun_again_counts(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.export.base import again, partial_of

    out, source = tmp_path / "merged", target_of(str(run.path), SILENT).base.folder
    size = 4 * sum(t.nbytes // 2 for t in read_model(source).values())
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, int(1.5 * size) + 2**28 - 1000))
    assert merged._numbers_for(source, out, 0, SILENT) == "F16"
    for place in (partial_of(out), partial_of(again(out))):
        place.mkdir(parents=True)
        (place / "shard").write_bytes(bytes(2000))
        assert merged._numbers_for(source, out, 0, SILENT) == "F32"
        shutil.rmtree(place)


def test_learned_rows_are_written_as_fine(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", trainable_token_indices={"embed_tokens": [1, 5]})
    stored = read_model(hf.export(adapter, tmp_path / "whole", hf.Config(), base=base, learned_in="F32").out)
    embedding = stored["model.embed_tokens.weight"]
    assert (embedding.dtype, embedding.served) == ("F32", "BF16")
    assert unchanged(embedding).dtype == "BF16"


def test_an_adapter_of_another_base_is_told(base: Path, tmp_path: Path) -> None:
    """What an adapter calls its base is compared with what it is put on; the same folder elsewhere, or under its name, is the same."""
    adapter = make_adapter(base, tmp_path / "adapter")
    other = Path(shutil.copytree(base, tmp_path / "another"))
    lines: Any = Lines()
    target_of(f"{base}+{adapter}", lines)
    moved = Path(shutil.copytree(base, tmp_path / "moved" / base.name))
    target_of(f"{moved}+{adapter}", lines)
    assert not lines.said
    target_of(f"{other}+{adapter}", lines)
    assert len(lines.said) == 1 and f"says that it was trained on {base}" in lines.said[0]


def test_a_checkpoint_without_its_description_is_not_whole(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ExportError, match=r"is not whole: it has neither adapter_config\.json"):
        hf.export(adapter, tmp_path / "out", hf.Config(), base=base)


def test_another_type_has_another_name() -> None:
    assert [hf.label(hf.Config(dtype=d)) for d in ("auto", "float16")] == ["hf", "hf-float16"]


def test_the_card_says_what_opens_a_packed_folder(base: Path, tmp_path: Path) -> None:
    card = (fp8.export(base, tmp_path / "fp8", fp8.Config()).out / "README.md").read_text(encoding="utf-8")
    assert "vllm serve FOLDER" in card and "`pip install compressed-tensors`" in card
    whole = (hf.export(base, tmp_path / "hf", hf.Config()).out / "README.md").read_text(encoding="utf-8")
    assert "vllm serve FOLDER" in whole and "pip install" not in whole


def test_few_tokens_of_ones_own_do_not_decide(base: Path) -> None:
    """Below 100 tokens the general text comes first, and decides."""
    from types import SimpleNamespace

    from transformers import AutoTokenizer

    from tunesmith.verbs.quality_texts import OWN, texts_of

    row = SimpleNamespace(ids=tuple(range(30)), mask=(False, *[True] * 29))
    tokenizer = AutoTokenizer.from_pretrained(base)
    for count, first in ((1, "English"), (8, OWN)):
        own: Any = SimpleNamespace(measure=[row] * count, name="mine")
        texts, about = texts_of(own, tokenizer, 8, 64)
        assert texts[0].name == first and {t.name for t in texts} == about.keys() and OWN in about


def test_which_type_a_folder_holds(base: Path, few: Path, tmp_path: Path) -> None:
    """A base in float32 has nothing finer; of two types the finer counts."""
    whole = make_model(few, tmp_path / "fp32", "llama")
    merge = hf.export(
        make_adapter(whole, tmp_path / "a"), tmp_path / "m", hf.Config(), base=whole, learned_in="F32"
    ).out
    assert learned_in(merge) is None
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name, dtype in (("b", torch.float32), ("a", torch.float16), ("c", torch.float16)):
        told = {"tunesmith.served": f'{{"BF16": ["{name}"]}}'}
        save_file({name: torch.ones(2, 2, dtype=dtype)}, mixed / f"{name}.safetensors", metadata=told)
    assert learned_in(mixed) == "F32"


def test_unlearned_weights_follow_a_chosen_type(base: Path, tmp_path: Path) -> None:
    from tunesmith.export import trained
    from tunesmith.export.model_config import load_config
    from tunesmith.export.numbers import Numbers

    stored = read_model(base)
    save_file({QUERY: load_file(base / "model.safetensors")[QUERY].float()}, tmp_path / "learned.safetensors")
    learned = trained.Trained(tmp_path, read_header(tmp_path / "learned.safetensors"), None)
    planned = trained.plan(stored, learned, {}, load_config(base), Numbers("F32"))
    assert {tensor.dtype for tensor in planned} == {"F32"}
    exact = {
        t.name: (t.dtype, t.serves)
        for t in trained.plan(stored, learned, {}, load_config(base), Numbers(learned="F32"))
    }
    assert exact.pop(QUERY) == ("F32", "BF16") and {dtype for dtype, _ in exact.values()} == {"BF16"}


def test_an_old_row_beyond_float16(tmp_path: Path) -> None:
    from tunesmith.export.rows import Rows, with_rows

    save_file({"values": torch.ones(1, 4)}, tmp_path / "rows.safetensors")
    save_file({"old": torch.full((3, 4), 1e6).bfloat16()}, tmp_path / "old.safetensors")
    rows = Rows((1,), read_header(tmp_path / "rows.safetensors")["values"])
    planned = with_rows(read_header(tmp_path / "old.safetensors")["old"], rows, "new", "F16")
    with pytest.raises(ExportError, match="beyond 65504"):
        list(planned.chunks())


def test_awq_stores_scaled_norms_as_served(base: Path, tmp_path: Path) -> None:
    """Norms that were learned are F32 in the merge; what AWQ scales of them is stored in the base's type."""
    from tunesmith.export.targets import awq

    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["input_layernorm"])
    whole = hf.export(adapter, tmp_path / "whole", hf.Config(), base=base, learned_in="F32").out
    name = "model.layers.0.input_layernorm.weight"
    assert (read_model(whole)[name].dtype, read_model(whole)[name].served) == ("F32", "BF16")
    rows = [[int(t) for t in torch.randint(3, 4000, (48,), generator=torch.manual_seed(i))] for i in range(3)]
    packed = read_model(awq.export(whole, tmp_path / "awq", awq.Config(), calibration=rows).out)
    assert packed[name].dtype == "BF16"
