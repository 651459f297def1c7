"""Is this folder (or file) a whole model? Asked of a person's own paths and of every finished download."""

from __future__ import annotations

from pathlib import Path

from ..config.errors import ReferenceNotFoundError, UserError
from .choose import PICKLES, best_gguf, pickled
from .headers import read_config, read_json, weights_of
from .licences import licence_files
from .resolved import Resolved

SAFETENSORS_WAY = (
    "pickled weights can run any code when they are opened, so they are not. Look for a version of the model with "
    "*.safetensors (on Hugging Face often the revision refs/pr/1, made by its converter), or convert it once where you "
    "trust it: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
)
PICKLED = "pickled weights can run any code when they are opened, so they are not. "
ADAPTER_WAY = (
    f"{PICKLED}Look for a version of the adapter with adapter_model.safetensors, or convert it once where you trust it: "
    "PeftModel.from_pretrained(base, …).save_pretrained(…), with peft's PeftModel"
)


def resolve_folder(path: Path, source: str, *, revision: str | None = None, gguf_file: str = "") -> Resolved:
    """The whole model at ``path``: a folder with config.json and safetensors, a folder with a .gguf, or a .gguf file.

    Raises ReferenceNotFoundError when nothing is there, UserError when something is missing, cut short, pickled only, or
    not a model; the message says what.
    """
    if path.is_file():
        return _gguf(path, source, revision)
    if not path.is_dir():
        raise ReferenceNotFoundError(f"there is no file or folder {path}", "check the path")
    if gguf_file:
        return _gguf(path / gguf_file, source, revision, path)
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    safetensors = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]
    if not safetensors and any(name.endswith(".gguf") for name in names):
        return _gguf(path / best_gguf(names, str(path)), source, revision)
    _refuse_other_folders(path, names, safetensors)
    read_config(path)
    weights_of(path)
    return Resolved(path, "safetensors", source, revision=revision, license_files=licence_files(path))


def resolve_adapter_folder(path: Path, source: str, *, revision: str | None = None) -> Resolved:
    """The whole adapter in the folder ``path``: adapter_config.json and adapter_model.safetensors. Raises as above."""
    if not path.is_dir():
        raise ReferenceNotFoundError(f"there is no folder {path}", "an adapter is a folder; check the path")
    if not (path / "adapter_config.json").is_file():
        raise UserError(f"{path} holds no adapter_config.json, so it is no adapter", "a LoRA adapter's folder has one")
    read_json(path / "adapter_config.json", 10_000_000)
    if not (path / "adapter_model.safetensors").is_file() and any(pickled(entry.name) for entry in path.iterdir()):
        raise UserError(f"{path} holds its adapter only as pickled weights", ADAPTER_WAY)
    weights_of(path, "adapter_model")
    return Resolved(path, "safetensors", source, revision=revision, license_files=licence_files(path))


def resolve_download(folder: Path, source: str, *, revision: str, file: str = "", adapter: bool = False) -> Resolved:
    """The same for what came from a hub, where a .gguf may lie in a folder below; ``file`` names it. Raises as above."""
    if adapter:
        return resolve_adapter_folder(folder, source, revision=revision)
    if not file and not any(folder.glob("*.safetensors")):
        every = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
        file = best_gguf(every, source) if every else ""
    return resolve_folder(folder, source, revision=revision, gguf_file=file)


def _gguf(file: Path, source: str, revision: str | None, root: Path | None = None) -> Resolved:
    if file.suffix != ".gguf":
        if pickled(file.name):
            raise UserError(f"{file} holds pickled weights", SAFETENSORS_WAY)
        hint = "name the folder that holds config.json and the weights, or a .gguf file"
        raise UserError(f"{file} is a file, and no .gguf one", hint)
    if not file.is_file():
        raise ReferenceNotFoundError(f"there is no file {file}", "check the path")
    with file.open("rb") as content:
        start = content.read(8)
    if start[:4] != b"GGUF" or len(start) < 8:
        raise UserError(f"{file} is not a GGUF file", "download it again; it is incomplete or something else")
    return Resolved(file.parent, "gguf", source, file.name, revision, licence_files(root or file.parent))


def _refuse_other_folders(path: Path, names: list[str], safetensors: list[str]) -> None:
    """Say what the folder is instead, or what it lacks, when that is plain from its names."""
    whole = "model.safetensors" in names or "model.safetensors.index.json" in names
    if "adapter_config.json" in names and not whole:
        base = read_json(path / "adapter_config.json", 10_000_000).get("base_model_name_or_path")
        which = base if isinstance(base, str) and base else "BASE"
        raise UserError(f"{path} is an adapter, not a whole model", f"write its base in front: {which}+{path}")
    if "trained_weights.json" in names and not whole:
        base = read_json(path / "trained_weights.json", 10_000_000).get("base")
        which = base if isinstance(base, str) and base else "BASE"
        raise UserError(
            f"{path} holds only the weights that were learned, not a whole model",
            f"write its base in front: {which}+{path}",
        )
    if not names:
        raise UserError(f"{path} holds no files", "a model folder has config.json, *.safetensors and a tokenizer")
    if not safetensors and any(pickled(name) for name in names):
        kinds = ", ".join(sorted({"*" + Path(name).suffix for name in names if name.endswith(PICKLES)}))
        raise UserError(f"{path} holds its weights only as {kinds}, which are pickled", SAFETENSORS_WAY)
    missing = [
        what for what, there in (("config.json", "config.json" in names), ("weights", bool(safetensors))) if not there
    ]
    if missing:
        raise UserError(
            f"{path} is no whole model: {' and '.join(missing)} missing",
            "a model folder has config.json, *.safetensors and a tokenizer",
        )
