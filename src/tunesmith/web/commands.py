"""The page starts work only by running ``tunesmith`` commands as processes: no shell, off the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.config.errors import UserError
from tunesmith.config.files import write_atomic
from tunesmith.config.home import home

COMMAND = (sys.executable, "-m", "tunesmith")
FILE_NAME = "new-run.yaml"


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    message: str
    hint: str

    @property
    def well(self) -> bool:
        return self.code == 0


def split_message(text: str) -> tuple[str, str]:
    """A command's stderr as its message and its hint (the lines after ``hint:``).

    Lines before the one that begins with ``error:`` told how far the work was, and are left out.
    """
    message: list[str] = []
    hint: list[str] = []
    lines = text.strip().splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), 0)
    for line in lines[first:]:
        if line.startswith("hint:"):
            hint.append(line.removeprefix("hint:").strip())
        elif hint:
            hint.append(line)
        else:
            message.append(line)
    return "\n".join(message).removeprefix("error: ").strip(), "\n".join(hint).strip()


async def run(command: Sequence[str], *arguments: str, patience: float = 300.0) -> Outcome:
    """Run ``command arguments`` to its end.

    The process stands in a session of its own: closing the page does not end it. Its output goes to files, so that it
    never waits for a reader. After ``patience`` seconds without an end the outcome says so and leaves it alone.
    """
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-web-"))
    try:
        out, err = folder / "out", folder / "err"
        process = await asyncio.to_thread(start, [*command, *arguments], out, err)
        waited = 0.0
        while process.poll() is None:
            await asyncio.sleep(0.05)
            waited += 0.05
            if waited > patience:
                shown = f"`tunesmith {' '.join(arguments)}` has not ended after {patience:.0f} s"
                return Outcome(1, "", shown, f"it is still at work as process {process.pid}")
        text, problems = (p.read_text(encoding="utf-8", errors="replace") for p in (out, err))
        message, hint = split_message(problems)
        if process.returncode and not message:
            message = text.strip() or f"`tunesmith {' '.join(arguments)}` ended with code {process.returncode}"
        return Outcome(process.returncode, text, message, hint)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(command: list[str], out: Path, err: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own; its output goes to the two files."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "NO_COLOR": "1", "TUNESMITH_PLAIN": "1"}
    options: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]
    with out.open("wb") as out_file, err.open("wb") as err_file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out_file, stderr=err_file, env=environment, **options
        )


async def start_run(command: Sequence[str], config: str) -> tuple[str, Outcome]:
    """Start a training run from YAML text; returns the new run's id ('' when it did not start) and the outcome."""
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-new-"))
    try:
        file = folder / FILE_NAME
        file.write_text(config, encoding="utf-8")
        outcome = await run(command, "train", str(file), "--detach")
        message = outcome.message.replace(str(file), FILE_NAME)
        outcome = Outcome(outcome.code, outcome.out, message, outcome.hint.replace(str(file), FILE_NAME))
        lines = outcome.out.strip().splitlines()
        return (Path(lines[-1].strip()).name if outcome.code == 0 and lines else ""), outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class SchemaSource:
    """The JSON Schema of a command's settings, asked of the command line once; kept in memory, and on disk until code changes."""

    def __init__(self, command: Sequence[str], kind: str = "train") -> None:
        self.command, self.kind = tuple(command), kind
        self._schema: dict[str, Any] | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> dict[str, Any]:
        """The schema. Raises UserError with the command's own words when it does not answer with one."""
        async with self._lock:
            if self._schema is None:
                self._schema = await self._read()
            return self._schema

    async def _read(self) -> dict[str, Any]:
        place = await asyncio.to_thread(self._place)
        try:
            kept = json.loads(await asyncio.to_thread(place.read_text, encoding="utf-8"))
            if isinstance(kept, dict) and "properties" in kept:
                return kept
        except (OSError, ValueError):
            pass
        outcome = await run(self.command, "schema", self.kind, patience=120)
        if not outcome.well:
            raise UserError(outcome.message, hint=outcome.hint or None)
        try:
            schema = json.loads(outcome.out)
        except ValueError as error:
            raise UserError(
                f"`tunesmith schema {self.kind}` did not answer with JSON: {outcome.out[:200]!r}"
            ) from error
        try:
            await asyncio.to_thread(self._keep, place, outcome.out)
        except OSError:
            pass  # a full or read-only disk costs only the next start a second
        return dict(schema)

    def _place(self) -> Path:
        """The cache file; its name changes with the version, the command and any source file of the package."""
        root = Path(tunesmith.__file__).parent
        mark = hashlib.sha256(repr((tunesmith.__version__, self.command)).encode())
        for path in sorted(root.rglob("*.py")):
            info = path.stat()
            mark.update(f"{path}:{info.st_mtime_ns}:{info.st_size}\n".encode())
        return home() / "cache" / f"schema-{self.kind}-{mark.hexdigest()[:16]}.json"

    def _keep(self, place: Path, text: str) -> None:
        if place.parent.is_dir():
            for old in place.parent.glob(f"schema-{self.kind}-*.json"):
                old.unlink(missing_ok=True)
        write_atomic(place, text)
