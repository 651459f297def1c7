"""Real Go for the tests: tests/go/render.go, compiled once, runs many templates in one process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from published import TEST_HOME

SOURCE = Path(__file__).parent / "go" / "render.go"


def go_job(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] = (),
    think: bool | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One rendering for `run_go`, as a client of Ollama sends it."""
    return {
        "template": template,
        "messages": [_as_sent(message) for message in messages],
        "tools": list(tools),
        "think": think,
        **more,
    }


def _as_sent(message: Mapping[str, Any]) -> dict[str, Any]:
    names = {"reasoning_content": "thinking", "name": "tool_name"}
    return {names.get(key, key): value for key, value in message.items()}


@cache
def program() -> Path:
    """The compiled program. Skips the test where Go is not installed."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed (Debian: apt-get install golang-go)")
    number = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    built = TEST_HOME / "go" / f"render-{number}"
    if not built.is_file():
        built.parent.mkdir(parents=True, exist_ok=True)
        part = built.with_suffix(f".{os.getpid()}")
        subprocess.run([go, "build", "-o", str(part), str(SOURCE)], check=True)
        part.replace(built)
    return built


def run_go(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``text`` and ``error`` of each job; ``vars``, ``thinking`` and ``call`` at the first of each template."""
    done = subprocess.run([str(program())], input=json.dumps(jobs), capture_output=True, encoding="utf-8", check=True)
    results: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(results) == len(jobs)
    return results
