"""What the documents say is what the program does: commands, settings, configs, links, and both languages alike."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import tunesmith
from tunesmith.cli import app
from tunesmith.config.base import Config
from tunesmith.verbs.run_config import load_config

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
TRAINING = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("training*.md"))
LEAST = {"model": "demo", "data": "lantern_bay"}
PAGES = sorted([ROOT / name for name in READMES] + list((ROOT / "docs").glob("*.md")))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", read(name), re.DOTALL | re.MULTILINE)


def prose(name: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(name), flags=re.DOTALL | re.MULTILINE)


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that call it."""
    command = command or get_command(app)
    below = getattr(command, "commands", {})
    if path and not below:
        yield path, command
    for name, inner in below.items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands())


def test_the_list_of_settings_is_generated() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.FILE.read_text(encoding="utf-8") == generate.settings(), "run: python docs/generate.py"


@pytest.mark.parametrize("name", READMES)
def test_every_command_is_in_the_readme(name: str) -> None:
    text = read(name)
    missing = [" ".join(path) for path in COMMANDS if f"| `tunesmith {' '.join(path)}` |" not in text]
    assert len(COMMANDS) > 10 and not missing, f"{name} says nothing of: {missing}"


@pytest.mark.parametrize("name", READMES)
def test_commands_in_the_readme_are_real(name: str) -> None:
    """The lines of the shell blocks, and what stands in backticks with arguments, are parsed by the command line itself."""
    shell = [line for language, text in blocks(name) if language == "sh" for line in text.splitlines()]
    quoted = re.findall(r"`(tunesmith [^`\n]+)`", prose(name))
    ours = [line for line in shell if line.startswith("tunesmith ")]
    assert len(ours) > 7 and quoted
    for line in [*ours, *quoted]:
        words = shlex.split(line)[1:]
        path = next((path for path in COMMANDS if tuple(words[: len(path)]) == path), None)
        assert path is not None, f"{name}: there is no command {line!r}"
        arguments = words[len(path) :]
        if arguments or line in ours:  # the bare name of a command, in prose, lacks its arguments
            COMMANDS[path].make_context(" ".join(path), arguments)


@pytest.mark.parametrize("name", READMES)
def test_configs_in_the_readme_are_valid(name: str, tmp_path: Path) -> None:
    configs = [text for language, text in blocks(name) if language == "yaml"]
    assert configs
    for i, text in enumerate(configs):
        path = tmp_path / f"{i}.yaml"
        path.write_text(text, encoding="utf-8")
        load_config(path, [])


def valid(settings: list[str], path: Path | None = None) -> None:
    """Load the config; an example need not name model and data."""
    given = set(yaml.safe_load(path.read_text(encoding="utf-8"))) if path else set()
    given |= {re.split(r"[.=]", setting)[0] for setting in settings if re.match(r"\w+(\.ref|\.train)?=", setting)}
    load_config(path, [f"{key}={value}" for key, value in LEAST.items() if key not in given] + settings)


def command_settings(line: str) -> list[str]:
    """The ``key=value`` words of a command, which must be one of ours."""
    words = shlex.split(line, comments=True)[1:]
    path = next((path for path in COMMANDS if tuple(words[: len(path)]) == path), None)
    assert path is not None, f"there is no command {line!r}"
    if words[len(path) :]:
        COMMANDS[path].make_context(" ".join(path), words[len(path) :])
    return [word for word in words if re.match(r"[a-z][\w.]*=", word)]


@pytest.mark.parametrize("name", TRAINING)
def test_configs_in_the_pages_on_training_are_valid(name: str, tmp_path: Path) -> None:
    """YAML blocks; commands, in blocks and in backticks; ``key=value``, one or several in backticks; names of settings."""
    for i, text in enumerate(text for language, text in blocks(name) if language == "yaml"):
        path = tmp_path / f"{i}.yaml"
        path.write_text(text, encoding="utf-8")
        valid([], path)
    quoted = re.findall(r"`([^`\n]+)`", prose(name))
    lines = [line for _, text in blocks(name) for line in text.splitlines()] + quoted
    for line in lines:
        if line.startswith("tunesmith "):
            valid(command_settings(line))
    for text in quoted:
        if re.match(r"[a-z][\w.]*=", text.strip('"')):
            parts = re.split(r" (?=[a-z][\w.]*=)", text.strip('"'))  # a value may hold spaces
            valid(parts)
    settings = set(re.findall(r"^\| `([\w.]+)`", read("docs/settings.md"), re.MULTILINE))
    settings |= {setting.rpartition(".")[0] for setting in settings}
    dotted = r"(model|data|method|train|tracking)(\.[a-z_]+)+(?<!\.json)(?<!\.log)"
    named = {text for text in quoted if re.fullmatch(dotted, text)}
    assert settings and not named - settings, f"{name}: there are no settings {sorted(named - settings)}"


def test_the_page_on_training_leads_to_all_of_them() -> None:
    missing = [name for name in TRAINING if f"]({Path(name).name})" not in read("docs/training.md")]
    assert len(TRAINING) > 5 and missing == ["docs/training.md"]


@pytest.mark.parametrize("name", READMES)
def test_every_environment_variable_of_ours_is_in_the_readme(name: str) -> None:
    sources = (ROOT / "src" / "tunesmith").rglob("*.py")
    read_by_us = {v for p in sources for v in re.findall(r"\bTUNESMITH_[A-Z]+\b", p.read_text(encoding="utf-8"))}
    missing = sorted(v for v in read_by_us if f"`{v}`" not in read(name))
    assert read_by_us and not missing, f"{name} says nothing of: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", text)
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)", text, re.M)
    }
    for target in targets:
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        assert (page.parent / file).exists(), f"{page.name}: {target} does not exist"
        assert file or anchor in anchors, f"{page.name}: there is no heading #{anchor}"


def test_both_languages_say_the_same() -> None:
    english, chinese = READMES
    assert blocks(english) == blocks(chinese)
    assert english in prose(chinese) and chinese in prose(english)
    headings = [[len(marks) for marks in re.findall(r"^(#+) ", prose(name), re.MULTILINE)] for name in READMES]
    assert headings[0] == headings[1]
    rows = [len(re.findall(r"^\|", prose(name), re.MULTILINE)) for name in READMES]
    assert rows[0] == rows[1]


def config_classes() -> list[type[Config]]:
    """Every config class of the package: all modules are imported first."""
    for module in pkgutil.walk_packages(tunesmith.__path__, "tunesmith."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[Config]] = []
    waiting = Config.__subclasses__()
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        found.append(cls)
    return [cls for cls in found if cls.__module__.startswith("tunesmith.")]


def test_every_setting_is_explained_in_both_languages() -> None:
    classes = config_classes()
    assert len(classes) > 5
    for cls in classes:
        for name, field in cls.model_fields.items():
            where = f"{cls.__module__}.{cls.__name__}.{name}"
            assert field.description and field.description.strip(), f"{where} has no English help"
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            if name != "kind":
                assert re.search(r"[\u4e00-\u9fff]", str(extra.get("zh", ""))), f"{where} has no Chinese help"
