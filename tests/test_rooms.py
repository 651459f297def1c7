"""The house plan, kept by a test: which room may import which, no circles, no heavy imports at the top of configs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tunesmith"

# room -> rooms it may import. docs/architecture.md shows the same table; `test_table_is_documented` compares them.
ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "runs": {"config"},
    "hub": {"config"},
    "data": {"config", "hub"},
    "render": {"config", "data"},
    "kernels": set(),
    "models": {"config", "hub", "kernels"},
    "stages": {"config", "data", "render", "models", "kernels"},
    "train": {"config", "runs", "models", "kernels", "stages"},
    "chat": {"config", "render", "models"},
    "evaluate": {"config", "runs", "data", "render", "models", "chat"},
    "export": {"config", "hub", "runs", "data", "render", "models", "chat", "evaluate"},
    "verbs": {
        "config", "runs", "hub", "data", "render", "models", "kernels", "stages", "train", "chat", "evaluate", "export",
    },
    "web": {"config", "hub", "runs"},
    "cli": {"config", "runs", "verbs", "web"},
}  # fmt: skip
# `train` sees only the protocol of stages, never a stage.
ONLY_MODULES = {("train", "stages"): {"tunesmith.stages.base"}}
WITHOUT_TORCH = {"config", "runs", "hub", "data", "web", "cli"}
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets"}
WITHIN_FUNCTIONS = {"datasets"}  # takes a second to import, but brings no torch


def room_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.stem if len(relative.parts) == 1 else relative.parts[0]


def modules() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if room_of(p) not in {"__init__", "__main__"})


def imports_of(path: Path, *, top_only: bool = False) -> set[str]:
    """Dotted names of what a file imports; relative imports are resolved; TYPE_CHECKING blocks count too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["tunesmith", *path.relative_to(SOURCE).parts[:-1]]
    found: set[str] = set()
    nodes = list(ast.iter_child_nodes(tree)) if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {stem} | {f"{stem}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    assert room in ALLOWED, f"{path}: the room {room!r} is not in the plan"
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "tunesmith" or len(parts) < 2:
            continue
        target = parts[1]
        if target in {"__version__", room}:
            continue
        assert target in ALLOWED[room], f"{path}: room {room!r} may not import {name}"
        only = ONLY_MODULES.get((room, target))
        if only is not None:
            assert name in {f"tunesmith.{target}"} or any(name == m or name.startswith(m + ".") for m in only), (
                f"{path}: {room!r} may import only {sorted(only)} of {target!r}, not {name}"
            )


def test_table_is_documented() -> None:
    """The table of docs/architecture.md names the same rooms with the same imports, and they all exist."""
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## The rooms")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", table, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    documented = {room: {name.strip() for name in cell.split(",")} - {"–"} for room, cell in rows}
    assert documented == ALLOWED
    assert documented.keys() == {room_of(path) for path in modules()}


def test_no_circles() -> None:
    done: set[str] = set()

    def visit(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, f"circle: {' -> '.join([*path, room])}"
        if room in done:
            return
        for target in ALLOWED[room]:
            visit(target, (*path, room))
        done.add(room)

    for room in ALLOWED:
        visit(room, ())


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_torch_where_it_must_not_be(path: Path) -> None:
    """Rooms that answer in a moment never import torch; config classes elsewhere keep it out of their module's top."""
    room = room_of(path)
    holds_config = any(
        isinstance(node, ast.ClassDef)
        and any(isinstance(b, ast.Name) and b.id in {"Config", "BaseConfig"} for b in node.bases)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    heavy = {name.split(".")[0] for name in imports_of(path, top_only=room not in WITHOUT_TORCH)} & HEAVY
    heavy -= WITHIN_FUNCTIONS - {name.split(".")[0] for name in imports_of(path, top_only=True)}
    if room in WITHOUT_TORCH or holds_config:
        assert not heavy, f"{path}: imports {sorted(heavy)}"


def test_nobody_asks_for_a_stage_by_name() -> None:
    """Outside `stages/`, no code compares with, branches on or indexes by a stage's name."""
    names = {p.stem for p in (SOURCE / "stages").glob("*.py")} - {"__init__", "base"}
    assert names, "no stage found"
    for path in modules():
        if room_of(path) in {"stages", "compat"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            compared: list[ast.expr] = []
            if isinstance(node, ast.Compare):
                compared = [node.left, *node.comparators]
            elif isinstance(node, ast.MatchValue):
                compared = [node.value]
            for value in compared:
                for leaf in ast.walk(value):
                    asks = isinstance(leaf, ast.Constant) and isinstance(leaf.value, str) and leaf.value in names
                    assert not asks, f"{path}:{node.lineno}: asks for the stage {leaf.value!r}"  # type: ignore[attr-defined]
