"""Fixtures shared by the tests."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder (a copy with hard links, so that a test can never change the original)."""
    source = Path(os.environ.get("TUNESMITH_TEST_SMOL", "/work/scratch/smol"))
    if not source.exists():
        pytest.skip("no SmolLM2 weights here; name their folder in TUNESMITH_TEST_SMOL")
    folder = tmp_path_factory.mktemp("smol")
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path.resolve())
        else:
            shutil.copyfile(path, folder / path.name)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if (
        tokenizer["pre_tokenizer"]["type"] == "ByteLevel"
    ):  # the original splits digits first; the GGUF it came from cannot say so
        tokenizer["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, tokenizer["pre_tokenizer"]],
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def smol_f16(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 exported to an F16 GGUF by our own target."""
    from tunesmith.export.targets import gguf

    return gguf.export(smol, tmp_path_factory.mktemp("gguf") / "smol-f16.gguf", gguf.Config(type="f16")).out


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """More threads than cores stall torch and llama.cpp on a busy machine."""
    import torch

    torch.set_num_threads(2)
