"""OFT: trains, resumes bit for bit, loads in plain peft, and merges to what peft merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from adapter_tools import config_of, largest_difference, logits, make_base, merged, open_base, train
from tunesmith.config.errors import ConfigError
from tunesmith.export.oft import rotations
from tunesmith.models.methods import oft

FORMS: dict[str, dict[str, Any]] = {
    "default": {"block_size": 16},
    "shared": {"blocks": 2, "block_share": True, "targets": "q_proj,down_proj"},
    "exact-dropout": {"block_size": 8, "neumann_terms": None, "dropout": 0.5, "modules_to_save": ["norm"]},
    "constrained": {"block_size": 8, "constrained": True, "epsilon": 0.05, "targets": "re:.*self_attn.*_proj"},
    "short-series": {"block_size": 4, "neumann_terms": 2, "layers": [0]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_resumes_loads_and_merges(base: Path, tmp_path: Path, form: str) -> None:
    config = config_of("oft", FORMS[form])
    start = oft.apply(open_base(base), config, base_name="x")
    torch.testing.assert_close(logits(start), logits(open_base(base)), rtol=0, atol=1e-5)
    trained = train(base, config, tmp_path / "step-6", 6)
    train(base, config, tmp_path / "step-3", 3)
    train(base, config, tmp_path / "again", 6, resume=tmp_path / "step-3")
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        whole, parts = load_file(tmp_path / "step-6" / name), load_file(tmp_path / "again" / name)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole), name
    expected = logits(trained)
    assert (expected - logits(open_base(base))).abs().max() > 1e-3, "nothing was learned"
    loaded = PeftModel.from_pretrained(open_base(base), str(tmp_path / "step-6"))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=2e-5)
    assert largest_difference(merged(base, tmp_path / "step-6", tmp_path / "out"), loaded.merge_and_unload()) <= 1e-6


def test_going_on_with_an_adapter(base: Path, tmp_path: Path) -> None:
    train(base, config_of("oft", {"blocks": 4, "targets": "q_proj"}), tmp_path / "a", 2)
    config = oft.adopted(config_of("oft", {"start_from": str(tmp_path / "a")}), tmp_path / "a")
    assert (config.blocks, config.block_size, config.targets) != (None, 32, ("all",))
    train(base, config, tmp_path / "b", 0)
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(ConfigError, match="block_size: 16 is asked for"):
        oft.adopted(config_of("oft", {"start_from": "x", "block_size": 16}), tmp_path / "a")
    with pytest.raises(ConfigError, match="of kind oft"):
        from tunesmith.models.methods import lora

        lora.adopted(config_of("lora", {"start_from": "x"}), tmp_path / "a")


def test_the_exact_rotation_is_orthogonal() -> None:
    triangles = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    exact = rotations(triangles, 4, None, None)
    torch.testing.assert_close(exact @ exact.transpose(1, 2), torch.eye(4).expand(3, -1, -1), rtol=0, atol=1e-5)
    small = rotations(triangles * 0.05, 4, 9, None)
    torch.testing.assert_close(small @ small.transpose(1, 2), torch.eye(4).expand(3, -1, -1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"block_size": 7}, "7 does not divide the 32 inputs of .*q_proj"),
        ({"block_size": 64}, "does not divide"),
        ({"block_size": 8, "blocks": 4}, "two ways"),
        ({"targets": "nothing"}, "nothing"),
    ],
)
def test_mistakes(base: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        oft.apply(open_base(base), config_of("oft", settings), base_name="x")
