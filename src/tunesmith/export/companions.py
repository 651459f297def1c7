"""What travels beside the weights: tokenizer files byte for byte, chat template, licence files, model card, checksums."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.base import LOCK
from tunesmith.export.facts import hub_place, origin_of
from tunesmith.export.model_config import generation_config, without_code
from tunesmith.export.new_tokens import write_tokens
from tunesmith.export.tensor_files import read_json
from tunesmith.hub.licences import licence_files, may_travel, told_by_text
from tunesmith.models.changes import NewToken

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
CHECKSUMS = "SHA256SUMS"


def copy_tokenizer(source: Path, out: Path) -> list[str]:
    """Copy the tokenizer files unchanged (all but tokenizer_config.json); returns their names. Raises ExportError if none is there."""
    names = [*TOKENIZER_FILES, *sorted(p.name for p in source.glob("*.tiktoken"))]
    names = [name for name in names if may_travel(source / name, source)]
    if not names:
        raise ExportError(f"{source} holds no tokenizer", hint="is this a complete model folder?")
    for name in names:
        shutil.copyfile(source / name, out / name)
    return names


def find_template(folder: Path) -> str | None:
    """The chat template of a folder: chat_template.jinja, else inside tokenizer_config.json (its ``default``, if several)."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not (folder / "tokenizer_config.json").exists():
        return None
    found = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        return named.get("default")
    return found if isinstance(found, str) else None


def write_template(source: Path, out: Path, template: str | None) -> None:
    """``template`` as chat_template.jinja and inside tokenizer_config.json, which is otherwise kept as it is, but for what
    only transformers 5 could read."""
    path = source / "tokenizer_config.json"
    raw: dict[str, Any] = read_json(path) if path.exists() else {}
    wanted = for_transformers_4(without_code(raw)) | ({} if template is None else {"chat_template": template})
    if path.exists() and wanted == raw:
        shutil.copyfile(path, out / path.name)
    else:
        (out / path.name).write_text(json.dumps(wanted, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if template is not None:
        # bytes, so that no line ending is changed on any system
        (out / "chat_template.jinja").write_bytes(template.encode("utf-8"))


def for_transformers_4(raw: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json in words that transformers 4 knows too: the class that reads tokenizer.json, and special tokens
    without names of their own under their older key."""
    found = dict(raw)
    if found.get("tokenizer_class") == "TokenizersBackend":
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(found.get("extra_special_tokens"), list):
        found.setdefault("additional_special_tokens", found.pop("extra_special_tokens"))
        found.pop("extra_special_tokens", None)
    return found


def save_tokenizer(source: Path, out: Path, template: str, tokens: Sequence[NewToken] = ()) -> None:
    """The tokenizer of ``source`` with ``template`` and new ``tokens`` into ``out``: ``AutoTokenizer.from_pretrained(out)``
    renders as we do. Raises ExportError."""
    copy_tokenizer(source, out)
    write_template(source, out, template)
    if tokens:
        write_tokens(out, tokens)


def write_beside(
    out: Path, settings: dict[str, Any], base: Path, stops: Sequence[int], words: Path, template: str | None, licences: list[Path], card: str
) -> None:  # fmt: skip
    """All that stands beside the weights of a whole model, but for the checksums.

    ``settings``: config.json; ``base``: whose generation_config.json it gets, with ``stops``; ``words``: whose tokenizer; ``licences``: folders
    whose licence files travel along. Raises ExportError.
    """
    for name, value in (("config.json", settings), ("generation_config.json", generation_config(base, stops))):
        (out / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    copy_tokenizer(words, out)
    write_template(words, out, template)
    copy_licences(licences, out)
    (out / "README.md").write_text(card, encoding="utf-8")


def copy_licences(sources: list[Path], out: Path) -> list[str]:
    """Copy LICENSE, NOTICE and use-policy files; where names meet, the first source wins. Returns the names."""
    copied: dict[str, Path] = {}
    for folder in sources:
        for path in licence_files(folder):
            copied.setdefault(path.name, path)
    for name, path in copied.items():
        shutil.copyfile(path, out / name)
    return list(copied)


HOW_TO_RUN = """## How to run it

In vLLM, or in transformers (in place of `FOLDER`: this folder, or its name on a hub):

```sh
vllm serve FOLDER
```

```python
from transformers import pipeline

chat = pipeline("text-generation", "FOLDER")
print(chat([{"role": "user", "content": "Hello"}])[0]["generated_text"][-1]["content"])
```
"""
HOW_TO_RUN_ADAPTER = """## How to run it

In vLLM, or in transformers with peft (in place of `BASE`: the base above; `FOLDER`: this folder, or its name on a hub):

```sh
vllm serve BASE --enable-lora --lora-modules tuned=FOLDER
```

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, pipeline

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")
chat = pipeline("text-generation", model, tokenizer=AutoTokenizer.from_pretrained("FOLDER"))
print(chat([{"role": "user", "content": "Hello"}])[0]["generated_text"][-1]["content"])
```
"""


def model_card(
    base: Path, base_name: str | None, facts: Sequence[str], *, library: str = "transformers", relation: str | None = None,
    tags: Sequence[str] = (), more: str = "",
) -> str:  # fmt: skip
    """README.md: licence and language from the base's card, the base's name and revision if it is on a hub, ``facts`` as a list, and
    ``more`` Markdown after it.

    ``library``: ``peft`` for an adapter, "" for none; ``relation``: to the base (default: what the library is for); ``tags``: more of them.
    """
    import yaml

    front: dict[str, Any] = {"library_name": library} if library else {}
    front |= {"pipeline_tag": "text-generation", "tags": ["tunesmith", *tags]}
    inherited = front_matter(base / "README.md")
    short = origin_of(base).stem if origin_of(base) != base else base.name
    if base_name is None and "tunesmith" in (inherited.get("tags") or ()):  # a merged model: its own base is the one
        base_name = inherited.get("base_model")
        short = _heading(base / "README.md") or short
    if base_name:
        front["base_model"] = base_name
        front["base_model_relation"] = relation or ("adapter" if library == "peft" else "finetune")
    known = ("license", "license_name", "license_link", "language")
    front |= {key: inherited[key] for key in known if key in inherited}
    if not front.keys() & {"license", "license_name"} and (told := told_by_text(base)):
        front["license"] = told
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    place = hub_place(origin_of(base))
    came = f", dequantized from {origin_of(base).name}" if origin_of(base) != base else ""
    lines = [f"base: {base_name or short}" + (f", revision {place[1]}" if place else "") + came]
    if licence := front.get("license_name") or front.get("license"):
        lines.append(
            f"licence of the base: {licence}" + (f" ({front['license_link']})" if "license_link" in front else "")
        )
    text = "\n".join(f"- {line}" for line in [*lines, *facts])
    title = (base_name or short).rsplit("/", 1)[-1] + (", fine-tuned" if relation != "quantized" else "")
    return f"---\n{head}---\n\n# {title}\n\n{text}\n" + (f"\n{more.strip()}\n" if more else "")


def _heading(card: Path) -> str | None:
    """Of what model a card of ours says that it is fine-tuned."""
    found = re.search(r"^# (.+), fine-tuned$", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found[1] if found else None


def front_matter(path: Path) -> dict[str, Any]:
    """What a model card says about itself before its text; {} when it says nothing readable."""
    import yaml

    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def write_checksums(folder: Path, known: dict[str, str]) -> None:
    """SHA256SUMS over all files, as ``sha256sum -c`` reads it. ``known`` are sums that need no second reading."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name not in (CHECKSUMS, LOCK))
    sums = {name: known.get(name) or _sha256(folder / name) for name in names}
    (folder / CHECKSUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in names), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
