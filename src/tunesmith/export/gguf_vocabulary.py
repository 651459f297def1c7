"""The vocabulary of a GGUF, made from the tokenizer that transformers loaded: tokens, types, merges or scores, and how text is split.

llama.cpp's converter has a reader per family, some for files that transformers 5 no longer saves (tokenizer.model). Here one reading of
the loaded tokenizer serves every family, so that what is written is what the model was trained with. Two forms exist:

- byte-level BPE (GPT-2, Llama 3, Qwen, …): ``gpt2`` in llama.cpp, with merges and the name of a pre-tokenizer;
- BPE over whole text with byte fallback (Llama 2, Mistral, Gemma, Phi-3; SentencePiece's BPE): ``llama``, with scores.
  llama.cpp joins the pair whose joined token has the highest score, tokenizers the pair with the lowest merge rank; so the
  score of a token is minus the rank of the first merge that makes it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.pre_tokenizers import chain, described, name_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types (``tokenizer.ggml.token_type``)."""
SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Added tokens that are not flagged special but that llama.cpp's converter takes for control tokens in published models.
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)


@dataclass(frozen=True)
class GgufVocabulary:
    """``tokens[i]`` is the text of id i; ``types`` likewise. ``merges`` ("a b") for ``gpt2``, ``scores`` for ``llama``.

    ``space_first``: llama.cpp puts a space before text at the start and after special tokens. ``normalizer``: name of a Unicode normal
    form that the tokenizer applies and llama.cpp does not.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    space_first: bool | None = None
    normalizer: str | None = None

    def as_job(self) -> dict[str, Any]:
        """For the process that writes the file."""
        return dict(vars(self))


def vocabulary(tokenizer: Any, rows: int, known: str | None = None, example: str = "") -> GgufVocabulary:
    """What ``tokenizer`` (of transformers) says, for a model with ``rows`` rows of embeddings.

    ``known``: the converter's name for the pre-tokenizer of this very vocabulary, used where the chain has none. ``example``: a conversation as the model
    gets it; it decides for tokenizers that give a space to the first text only, which llama.cpp cannot. Raises ExportError for tokenizers that llama.cpp cannot copy.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(f"its tokenizer ({type(tokenizer).__name__}) is a program and not a tokenizer.json")
    raw = json.loads(backend.to_str())
    model = raw["model"]
    if model.get("type") != "BPE":
        raise _refused(f"its tokenizer is of the kind {model.get('type')}, and only BPE can be written")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refused(f"its tokenizer marks words with {key} = {model[key]!r}")
    tokens, types = _tokens(backend, raw, rows)
    if model.get("byte_fallback") and "<0x0A>" in model["vocab"]:
        found = _whole_text(raw, GgufVocabulary("llama", "default", tokens, types))
        added = tuple(token["content"] for token in raw["added_tokens"])
        if only_first_gets_a_space(raw) and added and example.startswith(added):
            return replace(found, space_first=False)
        return found
    return _byte_level(raw, GgufVocabulary("gpt2", "", tokens, types), known)


def _byte_level(raw: dict[str, Any], found: GgufVocabulary, known: str | None) -> GgufVocabulary:
    model, pre = raw["model"], raw.get("pre_tokenizer")
    name = name_of(chain(pre), bool(model.get("ignore_merges"))) or known  # its own name is the one most versions know
    if name is None:
        raise ExportError(
            f"llama.cpp does not know this tokenizer's way of splitting text, so a GGUF would read other tokens: {described(pre)}",
            hint="use the tokenizer files of the base model, byte for byte; a splitting of your own cannot be served by llama.cpp",
        )
    forms = [step["type"] for step in _steps(raw.get("normalizer"))]
    if forms not in ([], ["NFC"]):
        raise _refused(
            f"its tokenizer changes the text first (normalizer {' > '.join(forms)}), which llama.cpp does not"
        )
    merges = [" ".join(_pair(merge)) for merge in model["merges"]]
    return replace(found, pre=name, merges=merges, normalizer=forms[0] if forms else None)


def _whole_text(raw: dict[str, Any], found: GgufVocabulary) -> GgufVocabulary:
    ids = raw["model"]["vocab"]
    scores = [-1e9] * len(found.tokens)
    for rank, merge in enumerate(raw["model"]["merges"]):
        index = ids.get("".join(_pair(merge)))
        if index is not None and scores[index] == -1e9:
            scores[index] = -float(rank)
    types = list(found.types)
    for token, index in ids.items():
        if types[index] == NORMAL and _BYTE_TOKEN.fullmatch(token):
            types[index], scores[index] = BYTE, 0.0
    unknown = ids.get(raw["model"].get("unk_token"))
    if unknown is not None:
        types[unknown] = UNKNOWN
    return replace(found, types=types, scores=scores, space_first=_space_first(raw))


def _space_first(raw: dict[str, Any]) -> bool:
    """Whether text is given a space in front. Raises ExportError for steps that llama.cpp has no counterpart for."""
    pre: dict[str, Any] = raw.get("pre_tokenizer") or {}
    steps = _steps(raw.get("normalizer"))
    kinds = [step["type"] for step in steps]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    kind = pre.get("type")
    if kinds == ["Prepend", "Replace"] and steps[0]["prepend"] == SPACE and steps[1] == spaces and not pre:
        return True
    never_cuts = kind == "Split" and spaces in steps and " " in pre["pattern"].values()
    if steps == [spaces] and (not pre or never_cuts):
        return False
    if not steps and kind == "Metaspace" and not pre.get("split", True) and pre["replacement"] == SPACE:
        return bool(pre["prepend_scheme"] != "never")
    raise ExportError(
        "llama.cpp does not know this tokenizer's way of treating spaces, so a GGUF would read other tokens: "
        f"normalizer {' > '.join(kinds) or 'none'}, pre-tokenizer {described(pre)}",
        hint="use the tokenizer files of the base model, byte for byte",
    )


def only_first_gets_a_space(raw: dict[str, Any]) -> bool:
    """Whether ``raw`` (a tokenizer.json) puts a space before text at the very start, and not after special tokens."""
    return ((raw.get("pre_tokenizer") or {}).get("prepend_scheme")) == "first"


def _tokens(backend: Any, raw: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    texts = {index: token for token, index in backend.get_vocab(with_added_tokens=True).items()}
    if texts and max(texts) >= rows:
        raise ExportError(
            f"the tokenizer has the token {texts[max(texts)]!r} with id {max(texts)}, the model only {rows} rows of embeddings",
            hint="the folder's tokenizer belongs to another model",
        )
    added = {int(token["id"]): token for token in raw["added_tokens"]}
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(rows)]
    types = [NORMAL if i in texts else UNUSED for i in range(rows)]
    learned = raw["model"]["vocab"] if raw["model"].get("byte_fallback") else {}
    for index, token in added.items():
        text = token["content"]
        if token["special"] or _LOOKS_SPECIAL.fullmatch(text):
            types[index] = CONTROL
        elif not (
            SPACE in text and text in learned
        ):  # runs of ▁ are merges like others; as tokens of their own they'd cut words
            types[index] = USER_DEFINED
    return tokens, types


def _steps(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [] if normalizer is None else list(normalizer.get("normalizers", [normalizer]))


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ", 1) if isinstance(merge, str) else merge


def _refused(why: str) -> ExportError:
    return ExportError(
        f"this model cannot become a GGUF: {why}",
        hint="use the base model's own tokenizer files; --to hf needs none of this",
    )
