"""A GGUF's numbers against its source's, tensor for tensor: whatever is done to one of them is found, at 2 bits as at 16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tunesmith.chat.llama_library import library
from tunesmith.config.errors import ExportError
from tunesmith.export.ggml_quantize import Quantizer
from tunesmith.export.gguf_check import check_file
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.gguf_rows import THROUGH_F16, _factors, check_rows
from tunesmith.export.tensor_files import read_model

WIDTH, HEADS, LAYERS = 256, 4, 3
PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def source(folder: Path) -> dict[str, torch.Tensor]:
    """A llama as it is stored in bf16. Matrices have few rows, norms are no ones."""
    random = torch.Generator().manual_seed(0)

    def matrix(rows: int) -> torch.Tensor:
        return (torch.randn(rows, WIDTH, generator=random) * 0.05).bfloat16()

    tensors = {"model.embed_tokens.weight": matrix(40), "lm_head.weight": matrix(40), "model.norm.weight": matrix(1)[0]}
    for i in range(LAYERS):
        tensors[f"model.layers.{i}.input_layernorm.weight"] = matrix(1)[0]
        tensors |= {f"model.layers.{i}.{part}.weight": matrix(64) for part in PARTS}
    save_file(tensors, folder / "model.safetensors")
    return tensors


def placed(name: str) -> str:
    simple = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
    stem = name.removesuffix(".weight")
    if stem in simple:
        return f"{simple[stem]}.weight"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{PARTS.get(part, 'attn_norm')}.weight"


def interleaved(values: np.ndarray) -> np.ndarray:
    """As llama.cpp's converter does it."""
    return values.reshape(HEADS, 2, len(values) // HEADS // 2, -1).swapaxes(1, 2).reshape(values.shape)


Damage = Callable[[dict[str, np.ndarray]], None]


def write(
    path: Path, tensors: dict[str, torch.Tensor], kind: str, importances: dict[str, Any], damage: Damage | None = None
) -> Path:
    """The file as an export writes it; ``damage`` is done to its tensors, matrices as bytes [rows, bytes]."""
    number = gguf.GGMLQuantizationType[kind]
    quantizer = Quantizer(str(library()._name), 1)
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        values, place = tensor.float().numpy(), placed(name)
        if "attn_q" in place or "attn_k" in place:
            values = interleaved(values)
        if values.ndim == 2 and kind == "Q8_0":  # the converter's own rounding
            values = gguf.quants.quantize(values, number)
        elif values.ndim == 2 and kind == "F16":
            values = values.astype(np.float16)
        elif values.ndim == 2:
            known = importances.get(place)
            values = np.concatenate(list(quantizer.blocks(np.ascontiguousarray(values), (kind, int(number)), None if known is None else known[0])))  # fmt: skip
        found[place] = values.copy()
    if damage is not None:
        damage(found)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    for place, values in found.items():
        raw = number if values.dtype == np.uint8 else None
        writer.add_tensor(place, values, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {placed(n): random.random((1, WIDTH), dtype=np.float32) + 0.01 for n, t in tensors.items() if "layers" in n and t.ndim > 1}  # fmt: skip


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K", "Q2_K", pytest.param("IQ2_XS", marks=pytest.mark.slow)])
def test_every_tensor_of_a_whole_file_is_found(tmp_path: Path, kind: str) -> None:
    tensors = source(tmp_path)
    stored, importances = read_model(tmp_path), weights(tensors)
    if kind.startswith("IQ"):
        importances |= {name: np.ones((1, WIDTH), np.float32) for name in ("token_embd.weight", "output.weight")}
    made = write(tmp_path / "x.gguf", tensors, kind, importances)
    assert check_rows(made, stored, importances) == {"compared": len(tensors), "not_compared": []}


def scaled(by: float) -> Damage:
    def damage(found: dict[str, np.ndarray]) -> None:
        blocks = found["blk.1.ffn_down.weight"].reshape(-1, 84)  # of Q2_K: 16 scales, 64 quants, d and dmin as f16
        blocks[:, 80:84] = (blocks[:, 80:84].copy().view(np.float16) * np.float16(by)).view(np.uint8)

    return damage


def swapped(found: dict[str, np.ndarray]) -> None:
    q, k = "blk.1.attn_q.weight", "blk.1.attn_k.weight"
    found[q], found[k] = found[k], found[q]


def shifted(found: dict[str, np.ndarray]) -> None:
    found["blk.0.ffn_up.weight"] = np.roll(found["blk.0.ffn_up.weight"], 1, axis=0)


def not_interleaved(found: dict[str, np.ndarray]) -> None:
    found["blk.2.attn_k.weight"] = np.concatenate(
        [np.concatenate([head[::2], head[1::2]]) for head in np.split(found["blk.2.attn_k.weight"], HEADS)]
    )[::-1]


def swapped_everywhere(found: dict[str, np.ndarray]) -> None:
    for i in range(LAYERS):
        gate, up = f"blk.{i}.ffn_gate.weight", f"blk.{i}.ffn_up.weight"
        found[gate], found[up] = found[up], found[gate]


def zeroed_everywhere(found: dict[str, np.ndarray]) -> None:
    for i in range(LAYERS):
        found[f"blk.{i}.ffn_down.weight"].fill(0)


def zeroed(name: str) -> Damage:
    return lambda found: found[name].fill(0)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "swapped": (swapped, "blk.1.attn_k.weight does not hold the numbers of model.layers.1.self_attn.k_proj.weight"),
    "zeroed": (zeroed("blk.0.attn_v.weight"), "blk.0.attn_v.weight .*differ by 100%"),
    "embedding zeroed": (zeroed("token_embd.weight"), "token_embd.weight"),
    "head zeroed": (zeroed("output.weight"), "output.weight"),
    "norm zeroed": (zeroed("blk.1.attn_norm.weight"), "blk.1.attn_norm.weight"),
    "scaled": (scaled(1.05), r"blk.1.ffn_down.weight .*differ by 5%"),
    "shifted": (shifted, "blk.0.ffn_up.weight"),
    "swapped in all layers": (
        swapped_everywhere,
        r"blk.0.ffn_gate.weight does not hold .*mlp.gate_proj.weight but those of .*mlp.up_proj.weight",
    ),
    "zeroed in all layers": (zeroed_everywhere, "blk.0.ffn_down.weight .*differ by 100%"),
    "other order": (not_interleaved, "blk.2.attn_k.weight"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_one_tensor_of_two_bits_is_found(tmp_path: Path, name: str) -> None:
    damage, said = DAMAGES[name]
    tensors = source(tmp_path)
    importances = weights(tensors)
    made = write(tmp_path / "x.gguf", tensors, "Q2_K", importances, damage)
    for tolerance in (0.01, THROUGH_F16):
        with pytest.raises(ExportError, match=said):
            check_rows(made, read_model(tmp_path), importances, tolerance)


def test_a_kind_in_an_unknown_arrangement_is_counted_and_no_damage(tmp_path: Path) -> None:
    def rearranged(found: dict[str, np.ndarray]) -> None:
        for i in range(LAYERS):
            found[f"blk.{i}.attn_v.weight"] = found[f"blk.{i}.attn_v.weight"][::-1].copy()

    tensors = source(tmp_path)
    tensors["model.layers.1.self_attn.v_proj.weight"].fill_(0.5)  # equal in any order, which says nothing of the others
    save_file(tensors, tmp_path / "model.safetensors")
    made = write(tmp_path / "x.gguf", tensors, "F16", {}, rearranged)
    found = check_rows(made, read_model(tmp_path), {})
    assert found == {"compared": len(tensors) - LAYERS, "not_compared": ["blk.*.attn_v.weight"]}


def multiplied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Falcon-H1's converter does it: the embedding and the head by one factor each, parts of a layer's matrix by two."""
    made = {name: tensor.clone().float() for name, tensor in tensors.items()}
    made["model.embed_tokens.weight"] *= 5.65
    made["lm_head.weight"] *= 0.04
    made["model.layers.0.mlp.up_proj.weight"][:30] *= 1.25 * 0.35
    return made


@pytest.mark.parametrize("kind", ["F16", "Q2_K"])
def test_factors_of_config_json_that_the_file_does_not_name(tmp_path: Path, kind: str) -> None:
    tensors = source(tmp_path)
    importances, stored = weights(tensors), read_model(tmp_path)
    made = write(tmp_path / "x.gguf", multiplied(tensors), kind, importances)
    settings = {
        "embedding_multiplier": 5.65,
        "text_config": {"lm_head_multiplier": 0.04, "in_multipliers": [1.25, 0.35]},
    }
    assert check_rows(made, stored, importances, settings=settings) == {"compared": len(tensors), "not_compared": []}
    for other, wrong in (({}, "output"), (settings | {"embedding_multiplier": 5.5}, "token_embd")):
        with pytest.raises(ExportError, match=rf"{wrong}\.weight does not hold the numbers"):
            check_rows(made, stored, importances, settings=other)
    assert _factors({"embedding_multiplier": 5.65}, {"granite.embedding_scale": 5.65}) == []


def test_numbers_that_are_small_for_sixteen_bits(tmp_path: Path) -> None:
    """Near 5e-7 numbers of F16 are 6e-8 apart."""
    tensors = source(tmp_path)
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1e-5
    save_file(tensors, tmp_path / "model.safetensors")
    made = write(tmp_path / "x.gguf", tensors, "F16", {})
    assert check_rows(made, read_model(tmp_path), {}) == {"compared": len(tensors), "not_compared": []}


def test_a_lost_output_layer_is_noticed(tmp_path: Path) -> None:
    """llama.cpp would take the embedding in its place, which is right only where the two are the same."""
    tensors = source(tmp_path)
    made = write(tmp_path / "x.gguf", tensors, "F16", {}, lambda found: found.pop("output.weight"))  # type: ignore[arg-type,return-value]
    stored = read_model(tmp_path)
    with pytest.raises(ExportError, match=r"lacks 1 .* first lm_head\.weight"):
        check_file(made, stored, {})
    assert check_file(made, stored, {}, tied=True)["tensors"] == len(tensors) - 1
    same = stored | {"lm_head.weight": replace(stored["model.embed_tokens.weight"], name="lm_head.weight")}
    assert check_file(made, same, {})["unmapped"] == 0


def test_offsets_are_those_of_the_official_reader(tmp_path: Path) -> None:
    made = write(tmp_path / "x.gguf", source(tmp_path), "F16", {})
    theirs = {t.name: int(t.data_offset) for t in gguf.GGUFReader(made).tensors}
    assert {name: t.offset for name, t in read_gguf(made).tensors.items()} == theirs
