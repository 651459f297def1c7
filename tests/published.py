"""The chat templates that models are published with, read from other people's packages; none is copied into this repository.

    for published in templates():
        tokenizer = tokenizer_for(published)          # a small tokenizer with the family's special tokens
        tokenizer.apply_chat_template(messages)

Sources: ``trl`` (Jinja files; some with a twin whose ``{% generation %}`` marks what is learned), the npm package
``@huggingface/ollama-utils`` (pairs of a GGUF's Jinja and Ollama's Go template) and ``mistral-common`` (Mistral's own
generator). What cannot be had is not in ``templates()``; ``missing()`` says why. ``python tests/published.py`` fetches the npm package.

What this module does not know: how a template's answers are learned (tests/published_spans.py) and anything of Tunesmith.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import tarfile
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from published_families import FAMILIES, Family, family_of
from published_small_model import small_model

TEST_HOME = Path(os.environ.get("TUNESMITH_TEST_HOME", Path.home() / ".cache" / "tunesmith-tests"))
REGISTRY = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
OLLAMA_UTILS = "ollama-utils-0.0.18.tgz"
OLLAMA_UTILS_SHA256 = "3d8beba35ea5d634970e29090ab45234e54a3db8d9263cf72e0031c1cc44f8d5"
MISTRAL_VERSIONS = ("v1", "v2", "v3", "v3-tekken", "v7", "v11", "v13")


@dataclass(frozen=True)
class Published:
    """``name`` is unique and starts with the source: ``trl/qwen3``, ``ollama/gemma2:2b``, ``mistral-common/v7``.

    ``ollama`` and ``stop`` are the Go template and the stop texts of the same model in Ollama's library, where known.
    ``training`` is the source's own variant of ``jinja`` that marks what is learned with ``{% generation %}``.
    """

    name: str
    family: str
    source: str
    jinja: str
    ollama: str | None = None
    stop: tuple[str, ...] = ()
    training: str | None = None

    @property
    def tokens(self) -> Family:
        """Names of the family's bos, eos and end of turn."""
        return FAMILIES[self.family]


@cache
def templates() -> tuple[Published, ...]:
    """Every published template that can be had here, in a fixed order."""
    return (*_trl(), *_ollama_utils(), *_mistral_common())


def by_name(name: str) -> Published:
    """One of ``templates()``. Raises KeyError."""
    return {published.name: published for published in templates()}[name]


def missing() -> dict[str, str]:
    """Source -> why its templates cannot be had."""
    templates()
    return dict(_missing)


_missing: dict[str, str] = {}


def _trl() -> list[Published]:
    found = importlib.util.find_spec("trl")  # found, not imported: its import takes seconds
    folder = Path(found.origin or "").parent / "chat_templates" if found else None
    if folder is None or not folder.is_dir():
        _missing["trl"] = "the Python package trl is not installed (pip install -e '.[dev]')"
        return []
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
    return [
        Published(f"trl/{stem}", family_of(f"trl/{stem}"), "trl", text, training=texts.get(f"{stem}_training"))
        for stem, text in texts.items()
        if not stem.endswith("_training")
    ]


# --- @huggingface/ollama-utils ---------------------------------------------------------------------------------------

_STRING = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"


def fetch_ollama_utils() -> Path:
    """The package's archive in the tests' cache. Raises OSError when the registry cannot be reached or brings another file."""
    archive = TEST_HOME / "npm" / OLLAMA_UTILS
    if not archive.is_file():
        url = f"{REGISTRY}/@huggingface/ollama-utils/-/{OLLAMA_UTILS}"
        with urllib.request.urlopen(url, timeout=20) as response:
            content = response.read()
        if hashlib.sha256(content).hexdigest() != OLLAMA_UTILS_SHA256:
            raise OSError(f"{url} is another file (its SHA-256 differs)")
        archive.parent.mkdir(parents=True, exist_ok=True)
        part = archive.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(content)
        part.replace(archive)
    return archive


def _ollama_utils() -> list[Published]:
    try:
        content = fetch_ollama_utils().read_bytes()
    except OSError as error:
        _missing["ollama-utils"] = f"the npm package @huggingface/ollama-utils cannot be fetched: {error}"
        return []
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile("package/src/chat-template-automap.ts")
        assert member is not None
        source = member.read().decode("utf-8")
    result: list[Published] = []
    for entry in re.split(r"(?=\n\t\tmodel: )", source)[1:]:
        model, jinja, go = (_text_after(key, entry) for key in ("model", "gguf", "template"))
        stops = re.search(r"stop: \[([^\n]*)\]", entry)
        name = f"ollama/{model.removeprefix('library/')}"
        name += "" if all(p.name != name for p in result) else f"#{1 + sum(p.name.startswith(name) for p in result)}"
        stop = tuple(_unquoted(text) for text in re.findall(_STRING, stops[1])) if stops else ()
        result.append(Published(name, family_of(name), "ollama-utils", jinja, go, stop))
    return result


def _text_after(key: str, entry: str) -> str:
    found = re.search(rf"\n\t+{key}:\s*({_STRING})", entry)
    assert found is not None, f"no {key} in an entry of @huggingface/ollama-utils"
    return _unquoted(found[1])


def _unquoted(literal: str) -> str:
    """The text of a TypeScript string literal; the only escapes in that file are of quotes, backslashes and line ends."""
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], literal[1:-1])


# --- mistral-common --------------------------------------------------------------------------------------------------


def _mistral_common() -> list[Published]:
    try:
        from mistral_common.integrations.chat_templates.chat_templates import generate_chat_template
        from mistral_common.tokens.tokenizers.base import TokenizerVersion
    except ImportError as error:
        _missing["mistral-common"] = f"mistral-common is not installed or too old (pip install -e '.[dev]'): {error}"
        return []
    result = []
    for name in MISTRAL_VERSIONS:
        number, _, tekken = name.partition("-")
        jinja = generate_chat_template(
            spm=not tekken and number in {"v1", "v2", "v3", "v7"},
            tokenizer_version=TokenizerVersion(number),
            image_support=False,
            audio_support=False,
            thinking_support=number == "v13",
            default_system_prompt=None,
            plain_thinking_support=False,
            use_special_token_variables=True,
            model_settings_fields=None,
            reasoning_effort_values=None,
            reasoning_effort_default=None,
        )
        full = f"mistral-common/{name}"
        result.append(Published(full, family_of(full), "mistral-common", jinja))
    return result


# --- tokenizers ------------------------------------------------------------------------------------------------------

_SPECIAL = re.compile(
    r"<\|[^|<>{}\s'\"]{1,40}\|?>|<[a-z_]+\|>|<｜[^｜]+｜>|</?(?:start|end)_of_[a-z]+>|<extra_id_\d>|<sop>|<image>|\[\|[a-z]+\|\]|\[/?[A-Z_]{3,}\]|\[gMASK\]"
)
_ADDED = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")
"""Single tokens of Qwen, GLM and others that are *not* special: decoding does not skip them."""


def special_tokens(published: Published) -> tuple[str, ...]:
    """The special tokens that the template mentions or builds, and the family's own, without repetition."""
    family = published.tokens
    mentioned = [token for token in _SPECIAL.findall(published.jinja) if token not in family.plain]
    own = [token for token in (family.bos, family.eos, family.end, *family.more) if token]
    return tuple(dict.fromkeys([*own, *mentioned]))


@cache
def tokenizer_for(published: Published, adds_bos: bool | None = None) -> Any:
    """A ``PreTrainedTokenizerFast`` with the published template and the family's special tokens, each a single token.

    Its few words are trained on a sentence; any text is encoded without loss, in bytes where need be. Families that use
    SentencePiece get "▁" for spaces. ``adds_bos``: the post-processor puts BOS before every text, as llama's and gemma's do
    (None: as the family does). The tokenizer is shared: copy it before you change it.
    """
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    family = published.tokens
    backend = Tokenizer.from_str(small_model(family.sentencepiece).to_str())
    specials = special_tokens(published)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    added = sorted(set(_ADDED.findall(published.jinja)) - set(specials))
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    if family.bos and (family.adds_bos if adds_bos is None else adds_bos):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A {family.bos} $B",
            special_tokens=[(family.bos, backend.token_to_id(family.bos))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos or None,
        eos_token=family.eos,
        pad_token=family.eos,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = published.jinja
    return tokenizer


if __name__ == "__main__":
    try:
        print(fetch_ollama_utils())
    except OSError as error:
        print(
            f"the npm package @huggingface/ollama-utils cannot be fetched, tests with its templates will be skipped: {error}"
        )
