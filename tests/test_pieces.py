"""Texts cut into pieces are encoded as the tokenizer encodes them whole; where that is not sure, they are not cut."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from published_small_model import small_model
from tunesmith.render import pieces as module
from tunesmith.render.pieces import _WORDS, SPLITS, Pieces
from tunesmith.render.positions import ByteTable, Tokens, locate

MARKS = ("<|s|>", "<|e|>", "<|", "<tool>")
LINES = [
    "the user asks, and the user's answer. It's 12 o'clock",
    "a b  c\n\n the end. (the end)\n",
    "the (end), the = a/b",
    "aé'é ae\u0301 B你好a 'é kAé",
]


@cache
def across_words() -> str:
    """Byte-level BPE with merges over spaces and punctuation: any cut at a wrong place changes the ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    parts = [line[i:j] for line in LINES for i in range(len(line)) for j in range(i + 2, min(i + 8, len(line) + 1))]
    tokenizer.train_from_iterator(parts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet))
    return str(tokenizer.to_str())


def byte_level(pre_tokenizer: Any = None, normalizer: Any = None, added: Any = (), marks: Any = MARKS) -> Any:
    tokenizer = Tokenizer.from_str(across_words())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return with_marks(tokenizer, added, marks)


def with_marks(tokenizer: Any, added: Any = (), marks: Any = MARKS) -> Any:
    tokenizer.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in marks])
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def split_by(pattern: str, behavior: str = "isolated") -> Any:
    later = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior), later])


def metaspace(scheme: str) -> Any:
    tokenizer = Tokenizer.from_str(small_model(True).to_str())
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return with_marks(tokenizer)


def sentencepiece(*, prepend: bool) -> Any:
    tokenizer = Tokenizer.from_str(small_model(True).to_str())
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return with_marks(tokenizer)


def trimming() -> Any:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def dropping() -> Any:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.model.dropout = 0.5
    return tokenizer


DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
WORDS = {
    **{f"split {i}": lambda p=p: byte_level(split_by(p)) for i, p in enumerate(sorted(SPLITS))},
    "GPT-2's own": byte_level,
    "digits apart": lambda: byte_level(DIGITS),
    "composing": lambda: byte_level(normalizer=normalizers.NFC()),
    "no marks": lambda: byte_level(marks=()),
    "a post-processor": trimming,
    "a word added": lambda: byte_level(added=[AddedToken("the end", normalized=False)]),
}
PARTS = {
    "whole parts": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "a split unknown here": lambda: byte_level(split_by(r"\w+ \w+|\s+|[^\w\s]+")),
    "a split that merges": lambda: byte_level(split_by(sorted(SPLITS)[0], "merged_with_next")),
    "a normalized word added": lambda: byte_level(added=[AddedToken("the end", normalized=True)]),
    "lowercase": lambda: byte_level(normalizer=normalizers.Replace("b  c", "the")),
    "bytes as the last resort": lambda: sentencepiece(prepend=False),
    "Metaspace, never prepended": lambda: metaspace("never"),
}
WHOLE = {
    "Metaspace, prepended first": lambda: metaspace("first"),
    "Metaspace, prepended always": lambda: metaspace("always"),
    "prepended by the normalizer": lambda: sentencepiece(prepend=True),
    "a prefix space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "takes the space before": lambda: byte_level(added=[AddedToken("<l>", lstrip=True, normalized=False)]),
    "takes the space after": lambda: byte_level(added=[AddedToken("<r>", rstrip=True, normalized=False)]),
    "whole words only": lambda: byte_level(added=[AddedToken("user", single_word=True, normalized=False)]),
    "at random": dropping,
}

texts = st.lists(
    st.one_of(
        st.sampled_from([*MARKS, "<tool", "|>", "<l>", "<r>", "the end", "the", " user", "b  c", "'s", " ", "\n", "\n\n "]),
        st.sampled_from([", ", ".", "=", "\u0338", "\u0301", "é", "你好", "，", "🙂", "▁", "\u00a0", "12", "a", "B", "\t", "\r\n"]),
        st.text(st.characters(exclude_categories=("Cs",)), max_size=4),
        st.text("ab '(. \n1é", max_size=8),
    ),
    max_size=14,
).map("".join)  # fmt: skip


def pieces_of(tokenizer: Any) -> Pieces | None:
    return Pieces.of(tokenizer, ByteTable.of(tokenizer))


def rows_of(tokens: Tokens) -> list[list[tuple[int, int, int]]]:
    """(id, begin, end) of each token of each text."""
    bounds = tokens.bounds.tolist()
    whole = list(zip(tokens.ids.tolist(), tokens.begin.tolist(), tokens.end.tolist()))
    return [whole[a:b] for a, b in pairwise(bounds)]


@pytest.mark.parametrize("name", [*WORDS, *PARTS])
def test_pieces_are_what_the_tokenizer_says(name: str) -> None:
    """Ids and places, the first time a text is met, the second and the third (long parts are then known as a whole)."""
    tokenizer = (WORDS | PARTS)[name]()
    pieces = pieces_of(tokenizer)
    assert pieces is not None
    assert (pieces._cut == _WORDS.findall) == (name in WORDS)
    table = ByteTable.of(tokenizer)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(texts, max_size=5))
    def check(batch: list[str]) -> None:
        for _ in range(3):
            made = pieces.encode(batch)
            assert sorted(made.rows + made.others) == list(range(len(batch)))
            rows = rows_of(made.tokens)
            assert [[i for i, *_ in row] for row in rows] == [
                tokenizer(batch[r], add_special_tokens=False)["input_ids"] for r in made.rows
            ]
            for r, row in zip(made.rows, rows):
                by_text = locate(tokenizer, [batch[r]], table)
                assert (by_text.in_bytes or not batch[r]) and rows_of(by_text) == [row]

    check()


@pytest.mark.parametrize("name", WHOLE)
def test_what_depends_on_its_neighbours_is_not_cut(name: str) -> None:
    assert pieces_of(WHOLE[name]()) is None


def test_every_split_ends_words_where_pieces_end() -> None:
    """What ``SPLITS`` says of itself, tried on all neighbours: the tokenizer's parts end wherever a piece ends."""
    ends = ["", "x", ".", " ", "\n", "é", "'", "7", "你", "A", "'s", " \n", "\u0301"]
    for pattern in SPLITS:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        for before in ends:
            for between in map(chr, range(128)):
                for after in ends:
                    text = f"{before}k{between}{after}"
                    cuts = {m.end() for m in _WORDS.finditer(text)}
                    assert cuts <= {end for _, (_, end) in split.pre_tokenize_str(text)}, (pattern, text)


def test_known_pieces_are_forgotten_when_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = pieces_of(byte_level())
    assert pieces is not None
    monkeypatch.setattr(module, "CACHE_BYTES", 5000)
    for i in range(50):
        text = f"row {'x' * i} of many"
        assert rows_of(pieces.encode([text]).tokens) == rows_of(locate(pieces.tokenizer, [text], pieces.table))
        assert pieces._bytes < 5000 + 10 * module.ENTRY_BYTES
    assert len(pieces._known) < 30


def test_a_text_that_comes_again_is_one_piece() -> None:
    pieces = pieces_of(byte_level())
    assert pieces is not None
    prompt = "the user asks, and the user answers. It is the end of the day, again."
    for question in ("a", "b", "c"):
        pieces.encode([f"<|s|>{prompt}<|e|>{question}"])
    assert prompt in pieces._known
