"""Fixtures shared by the tests. Nothing of the person's own folders is touched.

Real weights (SmolLM2-135M-Instruct) are fetched once, the way the product fetches them, into ``$TUNESMITH_TEST_HOME``
(default ~/.cache/tunesmith-tests), so that later test runs find them there.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import pytest

# The same examples every time, so that a change is what makes a test fail; TUNESMITH_RANDOM_TESTS=1 looks for new ones.
hypothesis.settings.register_profile("same", derandomize=not os.environ.get("TUNESMITH_RANDOM_TESTS"))
hypothesis.settings.load_profile("same")

TEST_HOME = Path(os.environ.get("TUNESMITH_TEST_HOME", Path.home() / ".cache" / "tunesmith-tests"))
os.environ["TUNESMITH_HOME"] = str(TEST_HOME)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

from model_fixtures import few_words, make_model  # noqa: E402
from web_browser import browser, tab  # noqa: E402, F401 - fixtures


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """More threads than cores stall torch and llama.cpp on a busy machine."""
    import torch

    torch.set_num_threads(2)


def pytest_collection_finish() -> None:
    """What was imported until here stays for good: the garbage collector, which reading a vocabulary calls often, need not visit it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folders of a test lie in its own temporary folder; no server of this machine is asked."""
    monkeypatch.setenv("TUNESMITH_RUNS", str(tmp_path / "runs"))


@pytest.fixture(scope="session")
def smol() -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder, resolved, fetched and dequantized by the product itself."""
    from tunesmith.models.local import localize

    return localize("demo").folder


@pytest.fixture(scope="session")
def few(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer with few tokens, for models that are made, exported and read in a moment: ``make_model(few, …)``."""
    return few_words(smol, tmp_path_factory.mktemp("few") / "words")


@pytest.fixture(scope="session")
def smol_f16(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 exported to an F16 GGUF by our own target."""
    from tunesmith.export.targets import gguf

    return gguf.export(smol, tmp_path_factory.mktemp("gguf") / "smol-f16.gguf", gguf.Config(level="f16")).out


@pytest.fixture(scope="session")
def tiny(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama with SmolLM2's tokenizer: quick enough to train many times."""
    return make_model(smol, tmp_path_factory.mktemp("tiny") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def tiny_of_few_words(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with few tokens, quicker still; its rows are longer, up to 199 tokens in the demo's data."""
    return make_model(few, tmp_path_factory.mktemp("tiny") / "few-words", "llama")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny llama with a tokenizer, and a LoRA on all its linear layers."""
    from adapter_tools import make_base
    from families import save_tokenizer
    from model_fixtures import make_adapter

    folder = tmp_path_factory.mktemp("pair")
    base = make_base(folder / "base", vocab_size=96)
    save_tokenizer(base)
    return base, make_adapter(base, folder / "adapter", target_modules="all-linear")
