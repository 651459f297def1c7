"""What a repository, a revision, a file, a run or an Ollama model may be called. Pure text rules; nothing is looked up.

The hubs' own rules (huggingface_hub's ``validate_repo_id``; ``git check-ref-format``) narrowed to ASCII, because these
names become parts of URLs and of folder names here.
"""

from __future__ import annotations

import re

from ..config.errors import UserError

REPO = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9_-])?")
FILE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.() -]*/)*[A-Za-z0-9_][A-Za-z0-9_.() -]*\.gguf")
OLLAMA = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/-]*[A-Za-z0-9_-])?")
RUN_FORBIDDEN = re.compile(r"[\s/\\:@+#*?\"<>|\x00-\x1f\x7f]")
RUN_POINT = re.compile(r"step-(?:0|[1-9][0-9]{0,11})|best|base|last")


def check_text(text: str) -> None:
    """Raise UserError when ``text`` is empty or holds control characters, which no name and no sane path has."""
    if not text:
        raise UserError("the model reference is empty", "name a folder, a hub model such as org/name, or demo")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UserError(f"the model reference {text!r} holds control characters", "type it again without them")


def check_repo(repo: str, hub: str) -> None:
    """Raise UserError unless ``repo`` is ``org/name`` by the rules of ``hub`` (``hf`` or ``ms``)."""
    parts = repo.split("/")
    problem = None
    if len(parts) != 2 or not all(parts):
        problem = "it must be org/name"
    elif len(repo) > 96:
        problem = "it is longer than 96 characters"
    elif ".." in repo or (hub == "hf" and "--" in repo):
        problem = "'..' and '--' are not allowed"
    elif not all(REPO.fullmatch(part) for part in parts):
        problem = "letters, digits, '-', '_' and '.' are allowed, and no part starts or ends with '-' or '.'"
    elif repo.endswith(".git"):
        problem = "it may not end in .git"
    if problem:
        hint = "write it as the hub shows it, for example hf:HuggingFaceTB/SmolLM2-135M-Instruct"
        raise UserError(f"{repo!r} is not a model's name on a hub: {problem}", hint)


def check_revision(revision: str) -> None:
    """Raise UserError unless ``revision`` can be a branch, a tag or a commit."""
    bad = ".." in revision or "//" in revision or revision.endswith(".lock") or len(revision) > 128
    if bad or not REVISION.fullmatch(revision):
        raise UserError(
            f"{revision!r} is not a revision",
            "after the @ stands a branch, a tag or a commit, for example @main or @v1.0",
        )


def check_file(file: str) -> None:
    """Raise UserError unless ``file`` is the path of a .gguf file inside a repository."""
    if ".." in file or not FILE.fullmatch(file):
        raise UserError(
            f"{file!r} is not a file that can be named in a repository",
            "only one .gguf file may be named after org/name, for example hf:org/name/model-Q8_0.gguf",
        )


def check_run(run: str) -> None:
    """Raise UserError unless ``run`` can be the name of a run folder."""
    if not run or len(run) > 128 or run[0] in ".-" or RUN_FORBIDDEN.search(run):
        raise UserError(f"{run!r} is not a run's name", "write run:ID as listed by `tunesmith runs`")


def check_run_point(point: str) -> None:
    """Raise UserError unless ``point`` names a moment of a run: ``step-N``, ``best``, ``base`` or ``last``."""
    if not RUN_POINT.fullmatch(point):
        raise UserError(f"{point!r} is no point of a run", "after run:ID write @step-N, @best, @last or @base")


def check_ollama(name: str) -> None:
    """Raise UserError unless ``name`` can be a model in Ollama (``name``, ``name:tag``, ``namespace/name:tag``)."""
    if ".." in name or "//" in name or len(name) > 256 or not OLLAMA.fullmatch(name):
        raise UserError(f"{name!r} is not a model's name in Ollama", "write ollama:NAME as `ollama list` shows it")
