"""What a GGUF must say about its tokenizer, from the Hugging Face side; and the proof that llama.cpp reads it so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ExportError, UserError
from tunesmith.export.gguf_vocabulary import SPACE, only_first_gets_a_space
from tunesmith.export.load_back import PROBES as PLAIN

if TYPE_CHECKING:
    from tunesmith.chat.llama_model import Vocabulary

TEMPLATE = "tokenizer.chat_template"
BOS, EOS, EOT, EOM = (f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom"))
UNKNOWN, PADDING = "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"
ADD_BOS, ADD_EOS = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"

PROBES = (
    *PLAIN,
    "7 42 007 1984 31415 271828 1234567 12345678901234567890 1,234.5 3x4 v2.0.1 ١٢٣ ²½",
    "x  y   z\t\tw \n\n\n  u \r\n\r\n v   \n",
    "I'm you're WE'VE don't DON'T it'S she'll THEY'D 'twas 'RE o'clock 's",
    "你好，世界！今天是2024年11月28日。 简体字和繁體字 混合English文字",
    "東京タワーは333メートル。 서울은 12월에 춥다 привет Мир ελληνικά שלום العربية",
    "🙂🙃 👩‍👩‍👧‍👦 🇩🇪 ❤️ ✅→←≥√∑ “quotes” – — … €5 £3",
    'for (int i = 0; i < 10; ++i) { a[i] += "x\\n"; }  // done\n\tif x != y: return {**z}\n#include <a/b.h>\n',
    "https://example.org/a_b?c=d&e=%20f user@host.com C:\\dir\\file.txt snake_case CamelCase HTTPServer iOS",
    "a" * 300 + " " + "!" * 60 + " " + "=" * 40 + " " * 40 + "0" * 50 + "\n" * 20 + "哈" * 30,
    "",
    " ",
    "\n",
)
"""Texts over which a tokenizer and its GGUF must agree: digits, spaces, line ends, contractions, scripts, emoji, code, long runs."""

RARE = {
    "letters with separate accents": "E\u0301cole e\u0301te\u0301 u\u0308ber man\u0303ana",
    "capitals beyond A-Z inside words": "ÉCOLE ÉtéÀ ПРИВЕТмир ΑΒΓδ Ünïcödé ŁódźŻ",
    "scripts with vowel signs": "हिन्दी में लिखा ภาษาไทย বাংলা தமிழ் កាន់តែពិសេស",
    "unusual spaces": "a\u00a0b\u2003c\u3000d\u200be \u0085f\x0bg",
}
"""Where llama.cpp's splitting is known to be only near the original for some families: differences here are told, and no reason to refuse."""

LEADING = "spaces at the start of a text"
"""Tokenizers with Metaspace add a space in front unless there is one, llama.cpp adds one always."""
SAMPLE, LINES = 2048, 16
"""Tokens of the vocabulary that are read back, evenly spread over it, so many lines at a time (each call of llama.cpp compiles the
expressions of some families anew, which takes 10 ms)."""
TOLERATED = 0.1
"""Share of these texts that may differ: tokens that RARE stands for."""


@dataclass(frozen=True)
class TokenDifference:
    """``text`` is read by llama.cpp as ``ours``, by the tokenizer as ``theirs``. ``rare``: a key of ``RARE``, ``LEADING`` or ``vocabulary``."""

    text: str
    ours: list[int]
    theirs: list[int]
    rare: str | None = None


def metadata(tokenizer: Any, stops: list[int], bos: int | None = None) -> dict[str, Any]:
    """Metadata key -> value (id, flag or text) as ``tokenizer`` and ``stops`` (ids that end an answer) demand.

    ``bos``: the config's first token, for tokenizers that name none (it is written, not added to texts)."""
    eos = tokenizer.eos_token_id
    if stops and eos not in stops:
        eos = stops[0]
    plain, special = (tokenizer("a", add_special_tokens=add).input_ids for add in (False, True))
    found: dict[str, Any] = {
        ADD_BOS: bool(special) and special[0] == tokenizer.bos_token_id and special[0] != plain[0],
        ADD_EOS: bool(special) and special[-1] == tokenizer.eos_token_id and special[-1] != plain[-1],
    }
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else bos
    for key, value in ((BOS, first), (EOS, eos), (UNKNOWN, tokenizer.unk_token_id), (PADDING, tokenizer.pad_token_id)):
        if value is not None and 0 <= value < len(tokenizer):
            found[key] = int(value)
    template = tokenizer.chat_template
    templates = template if isinstance(template, dict) else {"default": template}
    for name, text in templates.items():
        if text:
            found[TEMPLATE if name == "default" else f"{TEMPLATE}.{name}"] = str(text)
    return found


def model_name(name: str, tokenizer: Any) -> str:
    """``name`` as it may stand in ``general.name``.

    llama.cpp looks there for "phi3" or "phi-3": then special tokens swallow the spaces after them, as Phi-3's do, and a vocabulary
    without ``<s>``, ``</s>``, ``<unk>`` and ``<|endoftext|>`` cannot be loaded at all.
    """
    added = tokenizer.added_tokens_decoder.values()
    swallows = [str(token) for token in added if token.rstrip and str(token) not in ("<s>", "<unk>", "<|endoftext|>")]
    needed = {"<s>", "</s>", "<unk>", "<|endoftext|>"} <= set(tokenizer.get_vocab())
    called = re.search(r"phi-?3", name, re.IGNORECASE)
    if swallows and needed:
        return name if called else f"{name} (phi-3)"
    return re.sub(r"(phi)-?(?=3)", r"\1 ", name, flags=re.IGNORECASE) if called else name


def token_differences(path: Path, tokenizer: Any, stops: Sequence[int] = ()) -> tuple[list[TokenDifference], list[int]]:
    """How llama.cpp's reading of ``path`` differs from ``tokenizer``, and the ``stops`` at which llama.cpp would not stop.

    Compared are ``PROBES``, every added token in the middle of text, a conversation in the chat template, ``RARE`` and a sample of
    the vocabulary. Text is given as llama.cpp gets it: in the tokenizer's own Unicode form. Raises UserError when llama.cpp cannot read the file.
    """
    from tunesmith.chat.llama_model import Vocabulary, free_model, load_model

    model = load_model(path, vocabulary_only=True)
    try:
        read = Vocabulary(model)
        found = list(_differences(read, tokenizer))
        return found, [token for token in stops if not read.ends(token)]
    finally:
        free_model(model)


def _differences(read: Vocabulary, tokenizer: Any) -> Iterator[TokenDifference]:
    backend = tokenizer.backend_tokenizer
    raw = json.loads(backend.to_str())
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    # A space goes before the first text only, in some tokenizers; llama.cpp can do so after every special token, or never.
    lead = (
        added[0] if added and only_first_gets_a_space(raw) and conversation(tokenizer).startswith(tuple(added)) else ""
    )
    composes = '"NFC"' in json.dumps(raw.get("normalizer"))
    normal = backend.normalizer.normalize_str if composes else str
    metaspace = bool((raw.get("pre_tokenizer") or {}).get("prepend_scheme", "never") != "never" and not lead)
    probes: list[tuple[str, str | None]] = [
        (text, LEADING if metaspace and text.startswith(" ") else None) for text in PROBES
    ]
    if lead or not only_first_gets_a_space(raw):
        space = "" if metaspace else " "
        marked = [f"Hi{token}there{space}{token}{space}12\n{token}\n" for token in added[:64]]
        probes += [("".join(marked[i : i + LINES]), None) for i in range(0, len(marked), LINES)]
    probes.append((conversation(tokenizer), None))
    probes += [(text, name) for name, text in RARE.items()]
    words = list(_sample(raw["model"], set(added)))
    probes += [("-\n" + "\n".join(words[i : i + LINES]), "vocabulary") for i in range(0, len(words), LINES)]
    texts = [normal(text if text.startswith(tuple(added)) else lead + text) for text, _ in probes]
    for text, (_, rare), theirs in zip(texts, probes, backend.encode_batch(texts, add_special_tokens=False)):
        ours = read.tokenize(text)
        if ours != theirs.ids:
            yield TokenDifference(text, ours, theirs.ids, rare)


def _sample(model: dict[str, Any], added: set[str]) -> Iterator[str]:
    tokens = sorted((index, token) for token, index in model["vocab"].items() if token not in added)
    bytes_of = None if model.get("byte_fallback") else _bytes_of_characters()
    for _, token in tokens[:: max(1, len(tokens) // SAMPLE)]:
        if bytes_of is None:
            if not re.fullmatch(r"<0x[0-9A-F]{2}>", token):
                yield token.replace(SPACE, " ")
        elif all(character in bytes_of for character in token):
            try:
                yield bytes(bytes_of[character] for character in token).decode("utf-8")
            except UnicodeDecodeError:  # part of a character: no text leads to it alone
                continue


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others as characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def check_tokens(path: Path, tokenizer: Any, stops: list[int]) -> tuple[list[int], list[str]]:
    """Compare llama.cpp's reading of ``path`` with ``tokenizer``. Returns the stops that llama.cpp would not stop at, and in words where
    the two differ: names of rare texts (``RARE``, ``LEADING``), and how much of the vocabulary that was sampled.

    Raises ExportError when the two tokenize any probe, special token or rendered conversation differently.
    """
    try:
        found, missed = token_differences(path, tokenizer, stops)
    except UserError as error:
        raise ExportError(
            f"llama.cpp cannot read the GGUF that was written: {error.message}", hint=error.hint
        ) from error
    words = [d for d in found if d.rare == "vocabulary"]
    hard = [d for d in found if d.rare is None] or (
        words if len(words) > TOLERATED * min(SAMPLE, len(tokenizer)) / LINES else []
    )
    if hard:
        ours, theirs = hard[0].ours, hard[0].theirs
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        raise ExportError(
            f"llama.cpp reads {hard[0].text!r} as other tokens than the model was trained on (from token {at}: "
            f"{ours[at : at + 4]} instead of {theirs[at : at + 4]})",
            hint="llama.cpp has no pre-tokenizer for this tokenizer, so the GGUF would answer differently; it was not kept",
        )
    rare = list(dict.fromkeys(d.rare for d in found if d.rare not in (None, "vocabulary")))
    lines = -(-min(SAMPLE, len(tokenizer)) // LINES)
    return missed, [*rare, *([f"{len(words)} of about {lines} samples of the vocabulary"] if words else [])]


def conversation(tokenizer: Any) -> str:
    """A short conversation in ``tokenizer``'s chat template; empty where there is none, or it wants other roles."""
    if not tokenizer.chat_template:
        return ""
    turns = [{"role": "user", "content": "What is 12 × 34? 你好 🙂"}, {"role": "assistant", "content": "408"}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template that wants other roles is tried where conversations are rendered, not here
        return ""
