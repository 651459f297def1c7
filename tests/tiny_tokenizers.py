"""Small tokenizers in the exact form of each family's tokenizer.json, trained here on this project's own texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIZE = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>")
"""The last is not special: it is an added token that people see."""
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def texts() -> list[str]:
    """What the vocabularies are learned from: English, Chinese, code, digits, and the texts that exports are proved with."""
    from tunesmith.export.gguf_tokens import PROBES, RARE

    # a copy, so that no change of a page changes what the tests train and measure
    ours: list[str] = json.loads((Path(__file__).parent / "recorded" / "words.json").read_text(encoding="utf-8"))
    return ours + [*PROBES, *RARE.values()] * 3  # so that pieces of the probes are tokens, and a wrong split shows


def byte_level(
    pre_tokenizer: Any = None,
    *,
    normalizer: Any = None,
    ignore_merges: bool = False,
    size: int = SIZE,
    special: Sequence[str] = SPECIAL,
) -> Any:
    """A byte-level BPE with ``pre_tokenizer`` (default: GPT-2's), its special tokens first: ids 0, 1, 2 …"""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(text, special=True) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def save(tokenizer: Any, folder: Path, **settings: Any) -> None:
    """Write ``tokenizer`` into ``folder`` as transformers does, with a ChatML template."""
    from transformers import PreTrainedTokenizerFast

    known = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **known | settings).save_pretrained(folder)


def pre_tokenizer_of(chain: Sequence[str]) -> Any:
    """The steps of a tokenizer.json for a chain of ``export.pre_tokenizers.NAMES``, as published files have them."""
    from tokenizers import Regex, pre_tokenizers

    from tunesmith.export.pre_tokenizers import GPT2

    steps: list[Any] = []
    for expression in chain:
        if expression == GPT2:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
        elif expression in (r"\p{N}", r"\p{N}+"):
            steps.append(pre_tokenizers.Digits(individual_digits=expression == r"\p{N}"))
        elif expression.startswith("Punctuation"):
            steps.append(pre_tokenizers.Punctuation("contiguous"))
        else:
            steps.append(pre_tokenizers.Split(Regex(expression), "isolated"))
    if GPT2 not in chain:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]


def whole_text(
    *, first: str | None = None, prepend: bool = False, size: int = 800, special: Sequence[str] = ("<unk>", "<s>", "</s>", "<|user|>"),
    strip: bool = False, split: bool = False,
) -> Any:  # fmt: skip
    """A BPE over whole text with byte fallback. ``prepend``: as Llama 2 (normalizer); ``first``: as Mistral (Metaspace with this
    scheme); neither: as Gemma, ``split`` with its Split that never cuts. ``strip``: special tokens swallow spaces after them, as Phi-3's."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = sentencepiece_pieces(size, tuple(special[:3]))
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    del sentencepiece
    scored = [(score, piece) for piece, score in pieces if len(piece) > 1 and not piece.startswith("<")]
    merges = [
        (piece[:cut], piece[cut:])
        for _, piece in sorted(scored, key=lambda pair: -pair[0])
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=special[0], byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    if first is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=first, split=False)
    elif prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        tokenizer.normalizer = spaces
        if split:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=strip and t in ("</s>", "<|user|>")) for t in special]
    )
    return tokenizer


def sentencepiece_pieces(size: int, special: tuple[str, ...]) -> list[tuple[str, float]]:
    """Pieces and scores of a BPE that sentencepiece itself trained, with byte fallback."""
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(texts()).splitlines()), model_writer=out, model_type="bpe", vocab_size=size, byte_fallback=True,
        unk_piece=special[0], bos_piece=special[1], eos_piece=special[2], normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=0.98, num_threads=1, minloglevel=2,
    )  # fmt: skip
    found = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    return [(found.id_to_piece(i), found.get_score(i)) for i in range(found.get_piece_size())]


def loaded(tokenizer: Any, **settings: Any) -> Any:
    """``tokenizer`` as transformers hands it out, without files."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def write_vocabulary(path: Path, tokenizer: Any, name: str = "test") -> Any:
    """A GGUF with nothing but the vocabulary of ``tokenizer`` (of transformers), as export writes it; returns that vocabulary."""
    import gguf

    from tunesmith.export.gguf_tokens import conversation, metadata, model_name
    from tunesmith.export.gguf_vocabulary import vocabulary

    found = vocabulary(tokenizer, len(tokenizer), None, conversation(tokenizer))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(model_name(name, tokenizer))
    for key, value in metadata(tokenizer, []).items():
        {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)](key, value)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(found.tokens))
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    if found.scores is not None:
        writer.add_token_scores(found.scores)
    if found.merges is not None:
        writer.add_token_merges(found.merges)
    if found.space_first is not None:
        writer.add_add_space_prefix(found.space_first)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return found
