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
    "\\s?[A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-"
    "\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57"
    "\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-"
    "\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-"
    "\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-"
    "\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-"
    "\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)
"""The letters of DeepSeek LLM that have cases, spelled by number: some editors would change them into their canonical twins."""
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
