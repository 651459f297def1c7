"""GGUF levels below 8 bits: the types and the bytes of a real ``llama_model_quantize``, tensor for tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import gguf as gguf_package
import numpy as np
import pytest

from gguf_models import MODELS, importances, tensors_of, write_model
from llama_oracle import Job, oracle, quantize_each
from tunesmith.chat.llama_library import library
from tunesmith.config.errors import ExportError
from tunesmith.export.ggml_quantize import Quantizer
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.gguf_levels import LEVELS
from tunesmith.export.gguf_mix import Facts, fitting, may_quantize, needs_importance, tensor_types
from tunesmith.export.gguf_plan import Outline, Plan, check_importance, facts_of
from tunesmith.export.targets import gguf

OFTEN = ("q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_0", "iq4_xs", "iq4_nl", "q3_k_m", "q3_k_l", "q2_k")
"""Levels that are quick: the others search in tables that take seconds to make."""


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    return Quantizer(str(library()._name), 2)


@pytest.fixture(scope="module")
def real() -> Path:
    try:
        return oracle()
    except OSError as error:
        pytest.skip(f"there is no real llama_model_quantize to compare with: {error}")


def rounded(quantizer: Quantizer, weight: Any, kind: str, importance: Any | None) -> bytes:
    """A weight as ours writes it."""
    number = int(gguf_package.GGMLQuantizationType[kind])
    matrices = weight.reshape(-1, *weight.shape[-2:])
    return b"".join(
        block.tobytes()
        for i, rows in enumerate(matrices)
        for block in quantizer.blocks(rows, (kind, number), None if importance is None else importance[i])
    )


class Case:
    """One of ``MODELS`` with or without importances, as F32 in ``folder``, and what llama.cpp is to make of it."""

    def __init__(self, folder: Path, model: str, levels: Sequence[str], *, weighed: bool) -> None:
        folder.mkdir(exist_ok=True)
        source = folder / "source.gguf"
        self.data = write_model(source, **MODELS[model])
        self.facts = facts_of(MODELS[model].get("arch", "llama"), read_gguf(source).metadata)
        self.weighed, self.known = weighed, importances(self.data) if weighed else {}
        np.savez(folder / "known.npz", **self.known)
        self.made = {LEVELS[name].file_type: folder / f"{name}.gguf" for name in levels}
        self.levels = levels
        self.job: Job = (source, self.made, folder / "known.npz" if weighed else None)

    def check(self, quantizer: Quantizer, failed: dict[int, str]) -> None:
        """Every level: same types, same bytes, and refused for want of importances when the real one refuses (``failed``)."""
        shapes = {name: w.shape for name, w in self.data.items()}
        ours: dict[tuple[str, str], bytes] = {}
        for name in self.levels:
            level = LEVELS[name]
            types = tensor_types(level, shapes, self.facts, importance=self.weighed)
            if needs_importance(level, types) and not self.weighed:
                assert "requires an imatrix" in failed[level.file_type], name
                continue
            assert level.file_type not in failed, failed
            theirs = tensors_of(self.made[level.file_type])
            assert {n: t for n, (t, _) in theirs.items()} == types, name
            for tensor, weight in self.data.items():
                kind = types[tensor]
                if (tensor, kind) not in ours:
                    ours[tensor, kind] = (
                        weight.tobytes() if kind == "F32" else rounded(quantizer, weight, kind, self.known.get(tensor))
                    )
                assert ours[tensor, kind] == theirs[tensor][1], (name, tensor, kind)


PLAIN_AND_WEIGHED = pytest.mark.parametrize("weighed", [False, True], ids=["plain", "weighed"])


@PLAIN_AND_WEIGHED
@pytest.mark.parametrize("model", ["llama", "mixtral", "width-288"])
def test_same_types_and_bytes(real: Path, quantizer: Quantizer, tmp_path: Path, model: str, weighed: bool) -> None:
    case = Case(tmp_path, model, OFTEN, weighed=weighed)
    case.check(quantizer, quantize_each([case.job])[0])


@pytest.fixture(scope="module")
def at_every_level(
    real: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bool], tuple[Case, dict[int, str]]]:
    """Model and whether it is weighed -> what llama.cpp was to make of it, and what it refused."""
    place = tmp_path_factory.mktemp("every-level")
    cases = {
        (model, weighed): Case(place / f"{model}-{weighed}", model, tuple(LEVELS), weighed=weighed)
        for model in MODELS
        for weighed in (False, True)
    }
    failed = quantize_each([case.job for case in cases.values()])
    return {key: (case, why) for (key, case), why in zip(cases.items(), failed, strict=True)}


@pytest.mark.slow
@PLAIN_AND_WEIGHED
@pytest.mark.parametrize("model", MODELS)
def test_same_types_and_bytes_at_every_level(
    at_every_level: dict[tuple[str, bool], tuple[Case, dict[int, str]]], quantizer: Quantizer, model: str, weighed: bool
) -> None:
    case, failed = at_every_level[model, weighed]
    case.check(quantizer, failed)


def test_levels_in_order() -> None:
    """The setting offers exactly the levels there are, finest first."""
    assert get_args(gguf.Config.model_fields["level"].annotation) == tuple(LEVELS) == gguf.LEVELS
    bits = [level.bits for level in LEVELS.values()]
    assert bits == sorted(bits, reverse=True)
    assert gguf.Config(level="Q4_K_M").level == "q4_k_m"
    assert len({level.file_type for level in LEVELS.values()}) == len(LEVELS)
    for level in LEVELS.values():
        assert (
            gguf_package.LlamaFileType(level.file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
            == level.name.upper()
        )


def test_what_stays_in_32_bits() -> None:
    assert may_quantize("blk.0.attn_q.weight", (64, 256)) and may_quantize("blk.0.ffn_up_exps.weight", (4, 64, 256))
    for name, shape in {
        "blk.0.attn_norm.weight": (256,), "blk.0.attn_q.bias": (2, 256), "blk.0.ffn_gate_inp.weight": (8, 256),
        "blk.0.ffn_gate_inp_shexp.weight": (1, 256), "blk.0.ssm_conv1d.weight": (64, 4), "blk.0.shortconv.conv.weight": (64, 3),
    }.items():  # fmt: skip
        assert not may_quantize(name, shape), name


def test_widths_that_do_not_divide() -> None:
    assert [fitting(k, 288) for k in ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ3_S")] == [
        "Q8_0", "Q5_1", "Q5_0", "Q4_0", "Q4_0", "IQ4_NL"
    ]  # fmt: skip
    assert fitting("Q4_K", 512) == "Q4_K" and fitting("Q4_K", 48) == "F16"


def test_numbers_are_checked(quantizer: Quantizer) -> None:
    """What the quantizer is handed is proved: its numbering of types, finite numbers, importances where they are needed."""
    rows = np.ones((4, 256), np.float32)
    with pytest.raises(ValueError, match="calls type 12 Q4_K, not Q5_K"):
        list(quantizer.blocks(rows, ("Q5_K", 12), None))
    with pytest.raises(ValueError, match="IQ2_XXS needs an importance matrix"):
        list(quantizer.blocks(rows, ("IQ2_XXS", 16), None))
    rows[2, 7] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        list(quantizer.blocks(rows, ("Q4_K", 12), None))


def test_levels_that_need_importances_say_so() -> None:
    shapes = {f"blk.{i}.{name}.weight": (4, 256) for i in range(8) for name in ("attn_q", "attn_v", "ffn_down")}
    told = Outline(Facts("llama", 8), shapes, {}, {}, 0)
    refused = []
    for level in LEVELS.values():
        how = Plan(level, told, tensor_types(level, shapes, told.facts, importance=False))
        try:
            check_importance(how, None)
        except ExportError as error:
            assert "imatrix=" in str(error) and level.name in str(error)
            refused.append(level.name)
    assert refused == ["iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"]
    how = Plan(LEVELS["iq2_xs"], told, tensor_types(LEVELS["iq2_xs"], shapes, told.facts, importance=True))
    check_importance(how, set(shapes))
    with pytest.raises(ExportError, match=r"blk\.3\.attn_q"):
        check_importance(how, set(shapes) - {"blk.3.attn_q.weight"})
