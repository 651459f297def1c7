"""Which files of a repository (or folder) make up the model: weights once, and what is needed to use them. Names only."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..config.errors import UserError
from .licences import is_licence

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SUPPORT = (
    "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "tokenizer*", "README.md", "additional_chat_templates/*.jinja",
)  # fmt: skip
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
GGUF_ORDER = ("BF16", "F16", "F32", "Q8_0")
NO_MODEL = re.compile("mmproj|imatrix", re.IGNORECASE)
"""GGUF files that are no language model: projectors for images, importance matrices."""
GGUF_TYPE = re.compile(r"(?:^|[-._])(bf16|fp16|f16|fp32|f32|q8_0)(?=\.gguf$)", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """Paths inside a repository; ``gguf`` names the one that is the model when it is a GGUF."""

    files: tuple[str, ...]
    gguf: str = ""


def pickled(name: str) -> bool:
    """Whether ``name`` is that of weights in Python's pickle format (``training_args.bin`` and the like do not count)."""
    return name.endswith(PICKLES) and not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))


def choose(paths: Iterable[str], where: str, *, file: str | None = None, adapter: bool = False) -> Choice:
    """What to download of the repository ``where`` that holds ``paths``; ``file`` is a .gguf that the person named.

    Raises UserError when it holds no weights that can be used.
    """
    there = sorted(paths)
    support = tuple(path for path in there if _supports(path))
    root = [path for path in there if "/" not in path]
    if file is not None:
        if file not in there:
            raise UserError(f"{where} holds no file {file}", _offer([p for p in there if p.endswith(".gguf")]))
        return Choice((*support, file), file)
    stem = "adapter_model" if adapter else "model"
    if f"{stem}.safetensors" in root:
        return Choice((*support, f"{stem}.safetensors"))
    shards = tuple(path for path in root if SHARD.fullmatch(path))
    if shards and not adapter and "model.safetensors.index.json" in root:
        return Choice((*support, "model.safetensors.index.json", *shards))
    if any(path.endswith(".gguf") for path in there) and not adapter:
        best = best_gguf(there, where)
        return Choice((*support, best), best)
    if any(pickled(path) for path in root):
        raise UserError(
            f"{where} offers its weights only pickled ({', '.join(p for p in root if pickled(p))}); these are not opened",
            "look for a version with *.safetensors; on Hugging Face try the revision refs/pr/1, made by its converter",
        )
    if "adapter_config.json" in root and not adapter:
        raise UserError(f"{where} is an adapter, not a whole model", f"write its base in front: BASE+{where}")
    raise UserError(f"{where} holds no {stem}.safetensors", "check the name; this may be another kind of model")


def best_gguf(paths: Iterable[str], where: str) -> str:
    """The .gguf file closest to the original weights: BF16, F16, F32, Q8_0, or the only one there is.

    Raises UserError when nothing makes one of them the natural choice.
    """
    every = sorted(path for path in paths if path.endswith(".gguf"))
    files = [path for path in every if not NO_MODEL.search(path) and not re.search(r"-\d+-of-\d+\.gguf$", path)]
    if not files and every:
        raise UserError(f"{where} holds no GGUF in one piece", "use the model's original with *.safetensors")
    ranks = {path: _gguf_type(path) for path in files}
    for kind in GGUF_ORDER:
        hits = [path for path in files if ranks[path] == kind]
        if len(hits) == 1:
            return hits[0]
        if hits:
            break
    if len(files) == 1:
        return files[0]
    raise UserError(f"{where} holds {len(files)} GGUF files", _offer(files))


def _gguf_type(path: str) -> str:
    found = GGUF_TYPE.search(path)
    return found.group(1).upper().replace("FP", "F") if found else ""


def _offer(files: list[str]) -> str:
    if not files:
        return "it holds no .gguf file at all"
    some = ", ".join(files[:8]) + (f" … ({len(files)} in all)" if len(files) > 8 else "")
    return f"name one of them after the model, as org/name/FILE.gguf, or as a path: {some}"


def _supports(path: str) -> bool:
    if path.endswith((".index.json", ".py", ".gguf", ".safetensors", *PICKLES)) or path.startswith("."):
        return False
    if "/" in path:
        return fnmatch.fnmatchcase(path, SUPPORT[-1])
    return is_licence(path) or any(fnmatch.fnmatchcase(path, pattern) for pattern in SUPPORT[:-1])
