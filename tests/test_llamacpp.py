"""The llama.cpp engine: exact distributions for given ids, the same tokens and text as transformers, whole characters."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.chat import llama_library, llamacpp
from tunesmith.chat.base import Sampling, answer
from tunesmith.chat.llama_model import load_model
from tunesmith.chat.llamacpp import LlamaCppEngine, chooser
from tunesmith.config.errors import RenderError, UserError

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def tokenizer(smol: Path) -> Any:
    return AutoTokenizer.from_pretrained(smol)


@pytest.fixture(scope="module")
def reference(smol: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(smol, dtype=torch.float32)


@pytest.fixture(scope="module")
def engine(smol_f16: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(smol_f16, threads=1, n_ctx=1024) as opened:
        yield opened


@pytest.mark.slow
def test_distributions_across_batches(engine: LlamaCppEngine, reference: Any) -> None:
    """600 tokens are run in three batches of at most 256: every row is a distribution, and each is the reference's."""
    ids = np.random.default_rng(0).integers(100, 40000, 600).tolist()
    found = engine.logprobs(ids)
    assert found.shape == (600, 49152) and found.dtype == np.float32
    assert np.abs(np.exp(found.astype(np.float64)).sum(-1) - 1).max() < 1e-5
    with torch.no_grad():
        expected = torch.log_softmax(reference(torch.tensor([ids])).logits[0], -1).numpy()
    assert np.abs(found - expected).max() < 0.1
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.99


def test_sequences_do_not_see_each_other(engine: LlamaCppEngine) -> None:
    first = engine.logprobs([10, 20, 30])
    answer(engine, QUESTION, Sampling(max_tokens=4))
    engine.logprobs(list(range(100, 180)))
    np.testing.assert_array_equal(engine.logprobs([10, 20, 30]), first)
    assert np.abs(engine.logprobs([10, 21, 30])[2] - first[2]).max() > 0.1


@pytest.mark.parametrize("ids", [[], [49152], [-1], [5] * 1025])
def test_impossible_sequences(engine: LlamaCppEngine, ids: list[int]) -> None:
    with pytest.raises(UserError):
        engine.logprobs(ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello",
        " 3.14159 and 1,000,000",
        "a  b   c\n\n\n\td ",
        "你好，世界！こんにちは",
        "🙂👩‍👩‍👧 naïve",
        "<|im_start|>user\nhi<|im_end|>",
    ],
)
def test_tokens_equal_hugging_face(engine: LlamaCppEngine, tokenizer: Any, text: str) -> None:
    assert engine.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids


def test_both_ways_to_the_prompt_agree(engine: LlamaCppEngine, smol_f16: Path, tokenizer: Any) -> None:
    """The GGUF's own template and tokens, and those of the Hugging Face tokenizer."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "12 × 34? 你好 🙂"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert engine.prompt(messages) == expected
    with LlamaCppEngine(smol_f16, tokenizer=tokenizer, threads=1, n_ctx=256) as other:
        assert other.prompt(messages) == expected
    with pytest.raises(RenderError):
        engine.prompt([{"role": "user"}])


def test_greedy_answer_is_the_reference_answer(engine: LlamaCppEngine, reference: Any, tokenizer: Any) -> None:
    prompt = torch.tensor([engine.prompt(QUESTION)])
    with torch.no_grad():
        out = reference.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=2)
    expected = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
    found = answer(engine, QUESTION, Sampling(max_tokens=24))
    assert found == expected
    assert "Paris" in found and "<|im_end|>" not in found


def test_pieces_are_whole_characters(engine: LlamaCppEngine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen tokens are dictated: several of these characters take more than one token. The last is cut off in its middle."""
    text = "🦜 naïve 龘 👩‍👩‍👧!"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > len(text) // 2 and any("\ufffd" in tokenizer.decode([i]) for i in ids)
    half = tokenizer("🦜", add_special_tokens=False).input_ids[:1]
    script = iter([*ids, *half, 2, 500])
    monkeypatch.setattr(llamacpp, "chooser", lambda _: lambda _: next(script))
    pieces = list(engine.stream(QUESTION, Sampling(max_tokens=100)))
    assert "".join(pieces[:-1]) == text
    assert all("\ufffd" not in piece and piece for piece in pieces[:-1])
    assert set(pieces[-1]) == {"\ufffd"}


def test_stops(smol_f16: Path, engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the file's own end token, at a given one, at max_tokens, and when the context is full."""
    ids = engine.tokenize("one two three four")
    monkeypatch.setattr(llamacpp, "chooser", lambda _: lambda _: next(script))
    script = iter([ids[0], 2, ids[1]])
    assert answer(engine, QUESTION, Sampling()) == "one"
    script = iter(ids)
    assert answer(engine, QUESTION, Sampling(max_tokens=2)) == "one two"
    prompt = len(engine.prompt(QUESTION))
    with LlamaCppEngine(smol_f16, threads=1, n_ctx=prompt + 3, stop_token_ids=[ids[2]]) as small:
        script = iter(ids)
        assert answer(small, QUESTION, Sampling()) == "one two"
        script = iter([ids[0]] * 50)
        assert answer(small, QUESTION, Sampling()) == "oneoneone"
        with pytest.raises(UserError, match="the context holds"):
            answer(small, [*QUESTION, *QUESTION], Sampling())


def test_sampling_is_repeatable_and_follows_its_settings(engine: LlamaCppEngine) -> None:
    warm = Sampling(max_tokens=12, temperature=1.5, seed=3)
    assert answer(engine, QUESTION, warm) == answer(engine, QUESTION, warm)
    several = {answer(engine, QUESTION, warm.model_copy(update={"seed": s})) for s in range(4)}
    assert len(several) > 1
    logits = np.log(np.array([0.05, 0.5, 0.3, 0.15], np.float32))
    assert chooser(Sampling())(logits) == 1
    # 0.5 < 0.6 ≤ 0.8: the two most likely stay, in the proportion 5 : 3
    choose = chooser(Sampling(temperature=1.0, top_p=0.6))
    counts = np.bincount([choose(logits) for _ in range(4000)], minlength=4)
    assert counts[0] == counts[3] == 0
    assert counts[1] / 4000 == pytest.approx(5 / 8, abs=0.03)


def test_bad_files_say_what_is_wrong(smol_f16: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In llama.cpp's own words, which go nowhere else, whoever had them before: here its usual listener, which writes them on stderr."""
    llama_library.library().llama_log_set(llama_library.LogCallback(), None)
    with pytest.raises(UserError, match="not a file"):
        LlamaCppEngine(tmp_path / "none.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smol_f16.read_bytes()[:50_000_000])
    with pytest.raises(UserError, match=r"cut\.gguf") as caught:
        LlamaCppEngine(cut)
    assert "not within the file bounds" in str(caught.value)
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    with pytest.raises(UserError, match="cannot load"):
        LlamaCppEngine(text)
    assert capfd.readouterr() == ("", "")


def test_closing(smol_f16: Path) -> None:
    engine = LlamaCppEngine(smol_f16, threads=1, n_ctx=256, name="mine")
    assert engine.name == "mine"
    engine.close()
    engine.close()
    with pytest.raises(UserError, match="mine is closed"):
        engine.logprobs([1])


def test_another_struct_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default found where another was expected means that fields have moved."""
    monkeypatch.setitem(llama_library.CONTEXT_FIELDS, "n_batch", (8, "I", 2048))
    llama_library.library.cache_clear()
    try:
        with pytest.raises(UserError, match=r"n_batch is 512 by default, 2048 was expected"):
            llama_library.library()
    finally:
        llama_library.library.cache_clear()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_llama_cpp_speaks_is_answered_when_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Python would run the handler within the callback for llama.cpp's words, where what it raises is lost."""

    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(number, stop)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    monkeypatch.setattr(llama_library.log, "debug", lambda _: os.kill(os.getpid(), number))
    try:
        with pytest.raises(Stop):
            load_model(broken)
        assert llama_library._held == []
        monkeypatch.undo()
        with pytest.raises(Stop):  # anywhere else at once, as before
            os.kill(os.getpid(), number)
            for _ in range(1000):
                pass
    finally:
        signal.signal(number, before)


def test_a_signal_while_llama_cpp_says_goodbye_is_not_lost(smol_f16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last words come when a model is freed: no later call would answer what came then."""

    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    engine = LlamaCppEngine(smol_f16, n_ctx=64, threads=1)
    engine.logprobs([1, 2])
    before = signal.signal(signal.SIGTERM, stop)
    try:
        llama_library.listen(llama_library.library())
        assert engine._context is not None
        real = engine._context.lib.llama_free

        def speaking(pointer: int) -> None:  # llama.cpp of this version frees in silence; another one may not
            real(pointer)
            monkeypatch.setattr(llama_library.log, "debug", lambda _: os.kill(os.getpid(), signal.SIGTERM))
            llama_library._receive(1, b"freed", None)

        monkeypatch.setattr(engine._context.lib, "llama_free", speaking)
        with pytest.raises(Stop):
            engine.close()
        assert llama_library._held == [] and engine._model is None
    finally:
        signal.signal(signal.SIGTERM, before)
