"""The vocabulary of a GGUF: llama.cpp reads every family's tokenizer as tokenizers does, and what it cannot read is refused in words.

Most tokenizers here are small ones trained in the form of a family's tokenizer.json, on texts that hold the probes: pieces of the
probes are tokens, so that a wrong split shows as other tokens. Real ones: SmolLM2 (test_export_gguf.py), and those inside mistral-common.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

import tiny_tokenizers
from tiny_tokenizers import byte_level, loaded, pre_tokenizer_of, whole_text, write_vocabulary
from tunesmith.config.errors import ExportError
from tunesmith.export.converter import known_pre_tokenizer
from tunesmith.export.gguf_tokens import LEADING, RARE, check_tokens, model_name, token_differences
from tunesmith.export.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, vocabulary
from tunesmith.export.pre_tokenizers import GPT2, LLAMA3, NAMES, QWEN2, TEKKEN, chain, name_of

ROWS = [
    (steps, name, whole)
    for steps, names in NAMES.items()
    for name, whole in (zip(names, (True, False)) if isinstance(names, tuple) else [(names, names in ("tekken", "minicpm5"))])
]  # fmt: skip
OFTEN = ("gpt-2", "smollm", "llama-bpe", "qwen2")
CHAT = "{{ bos_token }}{% for m in messages %}{{ '<|user|>\n' + m['content'] + '</s>\n' }}{% endfor %}"


def bytes_tokenizer(*steps: str, **how: Any) -> Any:
    made = byte_level(pre_tokenizer_of(steps), size=2000, **how)
    made.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return loaded(made, eos_token="<|im_end|>", chat_template=tiny_tokenizers.TEMPLATE)


def text_tokenizer(template: str | None = CHAT, **how: Any) -> Any:
    return loaded(whole_text(**how), bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template)


def differences(tokenizer: Any, folder: Path, name: str = "test") -> tuple[Any, list[str | None]]:
    found = write_vocabulary(folder / "vocabulary.gguf", tokenizer, name)
    return found, [d.rare for d in token_differences(folder / "vocabulary.gguf", tokenizer)[0]]


@pytest.mark.parametrize(
    ("steps", "name", "whole"),
    [pytest.param(*row, id=row[1], marks=[] if row[1] in OFTEN else pytest.mark.slow) for row in ROWS],
)
def test_every_known_chain_reads_the_same(tmp_path: Path, steps: tuple[str, ...], name: str, whole: bool) -> None:
    found, differ = differences(bytes_tokenizer(*steps, ignore_merges=whole), tmp_path)
    assert (found.model, found.pre) == ("gpt2", name)
    assert set(differ) - {"vocabulary"} <= ({*list(RARE)[:3]} if name in ("gpt-4o", "tekken") else set())
    assert differ.count("vocabulary") <= 4


def test_a_near_name_would_be_seen(tmp_path: Path) -> None:
    """Digits one by one, and in threes; written with each other's names, the probes differ."""
    for steps, other in ((QWEN2,), (LLAMA3,)), ((GPT2,), (TEKKEN,)):
        write_vocabulary(tmp_path / "other.gguf", bytes_tokenizer(*other))
        with pytest.raises(ExportError, match="other tokens than the model was trained on"):
            check_tokens(tmp_path / "other.gguf", bytes_tokenizer(*steps), [])


def test_chain_and_name() -> None:
    split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Removed", "invert": True}
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = chain({"type": "Sequence", "pretokenizers": [split, last]})
    assert name_of(steps, True) == "llama-bpe" and name_of(steps, False) == "dbrx"
    assert chain({"type": "ByteLevel", "add_prefix_space": True}) is None
    assert (
        chain({"type": "Sequence", "pretokenizers": [split | {"behavior": "MergedWithNext", "invert": False}]}) is None
    )
    assert (
        name_of(
            chain({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}, last]}), False
        )
        is None
    )


def test_unknown_splitting_is_shown_and_not_guessed() -> None:
    made = byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("[aeiou]"), "isolated"), pre_tokenizers.ByteLevel()])
    )
    with pytest.raises(ExportError, match=r"way of splitting text.*Split\('\[aeiou\]', behavior=Isolated"):
        vocabulary(loaded(made), 1000)


def test_other_kinds_are_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ExportError, match="of the kind WordLevel"):
        vocabulary(loaded(words), 1)
    with pytest.raises(ExportError, match=r"changes the text first \(normalizer Lowercase\)"):
        vocabulary(loaded(byte_level(normalizer=normalizers.Lowercase())), 1000)
    with pytest.raises(ExportError, match="way of treating spaces"):
        made = whole_text()
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        vocabulary(loaded(made), 1000)
    with pytest.raises(ExportError, match="only 100 rows of embeddings"):
        vocabulary(bytes_tokenizer(GPT2), 100)


def test_unicode_forms_are_left_to_the_person(tmp_path: Path) -> None:
    """Qwen composes letters and accents; llama.cpp does not, and reads text that is composed already as Qwen does."""
    found, differ = differences(bytes_tokenizer(QWEN2, normalizer=normalizers.NFC()), tmp_path)
    assert found.normalizer == "NFC" and differ == []


@pytest.mark.parametrize(
    ("how", "template", "space", "rare"),
    [
        ({"prepend": True}, CHAT, True, []),  # Llama 2
        ({"first": "first"}, CHAT, False, []),  # Mistral, where every conversation begins with <s>
        ({"first": "first"}, None, True, [LEADING] * 2),
        ({"first": "always"}, CHAT, True, [LEADING] * 2),
        ({"first": "never"}, CHAT, False, []),
        ({}, CHAT, False, []),  # Gemma
        ({"split": True}, CHAT, False, []),
    ],
)
def test_whole_text(tmp_path: Path, how: dict[str, Any], template: str | None, space: bool, rare: list[str]) -> None:
    """Vocabularies that sentencepiece trained, and only tokenizer.json kept: scores from the merges."""
    found, differ = differences(text_tokenizer(template, **how), tmp_path)
    assert (found.model, found.pre, found.space_first) == ("llama", "default", space)
    assert differ == rare


def test_scores_keep_the_order_of_sentencepiece() -> None:
    found = vocabulary(text_tokenizer(), 1000)
    scores = dict(zip(found.tokens, found.scores))
    pieces = [
        (piece, score)
        for piece, score in tiny_tokenizers.sentencepiece_pieces(800, ("<unk>", "<s>", "</s>"))
        if scores[piece] > -1e9
    ]
    ours = [piece for piece, _ in sorted(pieces, key=lambda pair: -scores[pair[0]]) if not piece.startswith("<0x")]
    theirs = [piece for piece, _ in sorted(pieces, key=lambda pair: -pair[1]) if not piece.startswith("<0x")]
    assert ours == theirs and len(ours) > 100


def test_phi3_swallows_spaces_by_its_name(tmp_path: Path) -> None:
    """llama.cpp finds out from general.name whether special tokens swallow the spaces behind them; a run's name says nothing."""
    special = ("<unk>", "<s>", "</s>", "<|user|>", "<|endoftext|>")
    phi, other = text_tokenizer(prepend=True, strip=True, special=special), text_tokenizer(prepend=True)
    assert model_name("my-run", phi) == "my-run (phi-3)" and model_name("Phi-3-mini", phi) == "Phi-3-mini"
    assert model_name("Phi-3-mini", other) == "Phi 3-mini" and model_name("my-run", other) == "my-run"
    assert differences(phi, tmp_path, "my-run")[1] == []
    assert differences(other, tmp_path, "a phi3 run")[1] == []


def test_types() -> None:
    """What is special is a control token whatever it looks like, and so is what looks like one; other added tokens are text that people see."""
    found = vocabulary(bytes_tokenizer(GPT2), 2010)
    kinds = dict(zip(found.tokens, found.types))
    added = byte_level(special=("<|im_start|>", "[INST]"))
    added.add_tokens([AddedToken("[SEEN]", special=False), AddedToken("<|hidden|>", special=False)])
    more = (lambda v: dict(zip(v.tokens, v.types)))(vocabulary(loaded(added), 600))
    assert [more[t] for t in ("[INST]", "[SEEN]", "<|hidden|>", "a")] == [CONTROL, USER_DEFINED, CONTROL, NORMAL]
    assert kinds["<|im_start|>"] == CONTROL and kinds["<tool_call>"] == USER_DEFINED and kinds["a"] == NORMAL
    assert kinds["[PAD2009]"] == UNUSED and len(found.tokens) == 2010
    made = whole_text()
    made.add_tokens(["▁▁", "<unused7>", "\n\n"])
    kinds = (lambda v: dict(zip(v.tokens, v.types)))(vocabulary(loaded(made), 900))
    assert kinds["<unk>"] == UNKNOWN and kinds["<0x0A>"] == BYTE and kinds["<s>"] == CONTROL
    assert kinds["▁▁"] == NORMAL and kinds["<unused7>"] == CONTROL and kinds["\n\n"] == USER_DEFINED


def test_ids_in_the_file(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "x.gguf", text_tokenizer(prepend=True))
    fields = GGUFReader(tmp_path / "x.gguf").fields
    read = {
        key: fields[f"tokenizer.ggml.{key}"].contents()
        for key in ("bos_token_id", "eos_token_id", "unknown_token_id", "add_space_prefix")
    }
    assert read == {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": True}


@pytest.mark.parametrize(
    ("added", "flags"),
    [("$A", (False, False)), ("<s> $A", (True, False)), ("$A </s>", (False, True)), ("<s> $A </s>", (True, True))],
)
def test_what_the_tokenizer_adds_llama_cpp_adds(tmp_path: Path, added: str, flags: tuple[bool, bool]) -> None:
    """The flags of the file, and the tokens of llama.cpp when it reads the text as a whole prompt."""
    from tunesmith.chat.llama_library import library
    from tunesmith.chat.llama_model import Vocabulary, load_model

    made = whole_text()
    made.post_processor = processors.TemplateProcessing(single=added, special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = loaded(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    write_vocabulary(tmp_path / "x.gguf", tokenizer)
    fields = GGUFReader(tmp_path / "x.gguf").fields
    assert tuple(bool(fields[f"tokenizer.ggml.add_{which}_token"].contents()) for which in ("bos", "eos")) == flags
    model = load_model(tmp_path / "x.gguf", vocabulary_only=True)
    try:
        read = Vocabulary(model)
        assert read.tokenize("Hello 42", add_special=True) == tokenizer("Hello 42").input_ids
        assert read.adds_bos is flags[0]
    finally:
        library().llama_model_free(model)


def test_published_vocabularies_are_known(smol: Path) -> None:
    from transformers import AutoTokenizer

    assert known_pre_tokenizer(AutoTokenizer.from_pretrained(smol)) == "smollm"
    assert known_pre_tokenizer(bytes_tokenizer(GPT2)) is None


@pytest.mark.slow
def test_mistral_as_published(tmp_path: Path) -> None:
    """tokenizer.model of Mistral 7B, read by transformers, written with scores from merges: the same tokens in llama.cpp."""
    import mistral_common
    from transformers import AutoTokenizer

    source = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    folder = tmp_path / "mistral"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(source.read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    found, differ = differences(AutoTokenizer.from_pretrained(folder), tmp_path)
    assert found.model == "llama" and len(found.tokens) == 32000 and set(differ) <= {LEADING}
