r"""llama.cpp's names for the ways byte-level BPE tokenizers split text before merging.

A GGUF stores no splitting expression, only the name of one that llama.cpp has in its code (``tokenizer.ggml.pre``,
src/llama-vocab.cpp). Here a tokenizer.json's chain of pre-tokenizers becomes a tuple of expressions, each applied to the pieces of the
one before; the table below says which name means the same chain. A chain that is not in it has no name: a near one would be a guess.
"""

from __future__ import annotations

from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _ENDS
QWEN2, LLAMA3 = _CL100K % r"\p{N}", _CL100K % r"\p{N}{1,3}"
QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _ENDS
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
O200K = _WORD % (_CONTRACTIONS + "?", _CONTRACTIONS + "?") + r"|\p{N}{1,3}" + _SIGNS + _ENDS
TEKKEN = _WORD % ("", "") + r"|\p{N}" + _SIGNS + _ENDS
_DEEPSEEK_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    + "\r\n"
    + r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["""
    + "\r\n"
    + r"""]*|\s*["""
    + "\r\n"
    + r"""]+|\s+(?!\S)|\s+"""
)
_HAN_KANA, _CJK = "[一-龥\u3040-ゟ゠-ヿ]+", "[一-龥ࠀ-一가-\ud7ff]+"
_CASED = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DIGIT, _DIGITS, _PUNCTUATION = r"\p{N}", r"\p{N}+", "Punctuation(Contiguous)"

NAMES: dict[tuple[str, ...], str | tuple[str, str]] = {
    (GPT2,): "gpt-2",
    (_DIGIT, GPT2): "smollm",
    (LLAMA3,): ("llama-bpe", "dbrx"),
    (QWEN2,): "qwen2",
    (QWEN35,): "qwen35",
    (O200K,): "gpt-4o",
    (TEKKEN,): "tekken",
    (r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK_WORDS): "deepseek-v3",
    ("[\r\n]", _CASED, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, _DIGIT): "deepseek-llm",
    ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT): "deepseek-coder",
    (_PUNCTUATION, GPT2, _DIGITS, "[0-9][0-9][0-9]"): "falcon",
    (r" ?[^(\s|[.,!?…。，、।۔،])]+",): "bloom",
    (r" ?[^(\s|[.,!?…。，、।۔،])]+", _DIGIT): "viking",
    (r"\p{N}{1,3}", _CL100K % r"\p{N}+"): "minicpm5",
    (r"\d{1,3}(?=(?:\d{3})*\b)", O200K): "tiny_aya",
    (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",): "bailingmoe",
    (_CONTRACTIONS + "|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",): "seed-coder",
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",): "exaone-moe",
}  # fmt: skip
"""Chain -> name; for the one chain that has two, the name for tokenizers that look whole pieces up first (``ignore_merges``), and the other."""


def chain(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...] | None:
    """The expressions of a tokenizer.json's ``pre_tokenizer``, or None where a step splits in a way expressions cannot say."""
    found = pre_tokenizer or {}
    steps: list[str] = []
    for step in found.get("pretokenizers", [found]):
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            steps += [GPT2] if step.get("use_regex", True) else []
        elif kind == "Digits":
            steps.append(_DIGIT if step.get("individual_digits") else _DIGITS)
        elif kind == "Punctuation" and step.get("behavior") == "Contiguous":
            steps.append(_PUNCTUATION)
        elif kind == "Split" and (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True)):
            expression = step.get("pattern", {}).get("Regex")
            if expression is None:
                return None
            steps.append(expression)
        else:
            return None
    return tuple(steps)


def name_of(steps: tuple[str, ...] | None, ignore_merges: bool) -> str | None:
    """llama.cpp's name for a chain, or None."""
    found = NAMES.get(steps) if steps is not None else None
    return found if found is None or isinstance(found, str) else found[0 if ignore_merges else 1]


def described(pre_tokenizer: dict[str, Any] | None) -> str:
    """The steps as a person finds them in tokenizer.json, for messages."""
    found = pre_tokenizer or {}
    return " > ".join(_step(step) for step in found.get("pretokenizers", [found])) or "none"


def _step(step: dict[str, Any]) -> str:
    kind = str(step.get("type", "none"))
    pattern = step.get("pattern", {})
    facts = [repr(value) for value in pattern.values()]
    facts += [f"{key}={step[key]}" for key in ("behavior", "invert", "individual_digits", "use_regex", "add_prefix_space", "prepend_scheme") if step.get(key) is not None]  # fmt: skip
    return f"{kind}({', '.join(facts)})" if facts else kind
