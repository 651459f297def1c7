"""Data sets on both hubs, over real HTTP from a stand-in: fetched, streamed, resumed, refused, offline."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from data_files import LINES, ROWS, config, put, questions
from hub_standin import Counting, Standin, serving
from tunesmith.config.errors import ReferenceNotFoundError, ServerError, UserError
from tunesmith.data.config import SetConfig
from tunesmith.data.load import open_set

README = (
    "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/train*.jsonl\n  - split: test\n"
    "    path: en/test.jsonl\n- config_name: zh\n  data_files: zh.json\n---\n# A set\n"
)


def repository() -> dict[str, bytes]:
    return {
        "README.md": README.encode(),
        "en/train-1.jsonl": LINES.encode(),
        "en/train-2.jsonl": LINES.replace('"q', '"more ').encode(),
        "en/test.jsonl": json.dumps({"instruction": "t", "output": "x"}).encode(),
        "zh.json": json.dumps([{"instruction": "问", "output": "答"}]).encode(),
    }


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """One stand-in for both hubs and an empty home."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TUNESMITH_OFFLINE", "TUNESMITH_HUBS", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.chdir(tmp_path)
    plain = {"train.jsonl": LINES.encode(), "notes.md": b"x"}
    with serving(Standin(data={"org/set": repository(), "org/plain": plain})) as standin:
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", standin.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", standin.url)
        yield standin


def of_hub(hub: str, **settings: Any) -> SetConfig:
    return SetConfig(set=f"{hub}:org/set", **settings)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("hub", ["hf", "ms"])
def test_a_set_on_a_hub(hubs: Standin, hub: str, streaming: bool) -> None:
    train = questions(of_hub(hub, subset="en", streaming=streaming))
    assert train == [f"q{i}" for i in range(5)] + [f"more {i}" for i in range(5)]
    fetched = {path for method, path, _ in hubs.requests if method == "GET"}
    assert fetched == {"README.md", "en/train-1.jsonl", "en/train-2.jsonl"}, "nothing else is asked for"
    assert questions(of_hub(hub, subset="en", split="test", streaming=streaming)) == ["t"]
    assert questions(of_hub(hub, subset="zh", streaming=streaming)) == ["问"]
    origin = next(open_set(of_hub(hub, subset="zh", streaming=streaming), config()).raw())[0]
    assert origin.startswith(f"{hub}:org/set@") and origin.endswith("/zh.json:row 1")


@pytest.mark.parametrize("hub", ["hf", "ms"])
def test_what_a_hub_s_set_does_not_have(hubs: Standin, hub: str) -> None:
    for settings, words in (
        ({}, "several subsets: en, zh"),
        ({"subset": "fr"}, r"no subset 'fr'[\s\S]*en, zh"),
        ({"subset": "en", "split": "dev"}, r"no split 'dev'[\s\S]*train, test"),
        ({"subset": "en", "split": "train[:10%]"}, "slice"),
        ({"subset": "en", "revision": "v9"}, "no revision 'v9'|with a revision 'v9'"),
        ({"folder": "fr"}, r"no folder 'fr'"),
    ):
        with pytest.raises(UserError, match=words):
            open_set(of_hub(hub, **settings), config())
    with pytest.raises(ReferenceNotFoundError, match="no data set org/none"):
        open_set(f"{hub}:org/none", config())


def test_a_set_that_is_only_a_script_is_refused(hubs: Standin) -> None:
    hubs.data["org/script"] = {"script.py": b"raise SystemExit", "README.md": b"# x"}
    with pytest.raises(UserError, match=r"code of a data set is not run[\s\S]*refs/convert/parquet"):
        open_set("hf:org/script", config())


def test_a_gated_set_says_what_to_do(hubs: Standin) -> None:
    hubs.gated.add("org/plain")
    with pytest.raises(ReferenceNotFoundError, match=r"accepted its terms[\s\S]*HF_TOKEN"):
        open_set("hf:org/plain", config())


@pytest.mark.parametrize("hub", ["hf", "ms"])
def test_what_was_fetched_is_used_offline(hubs: Standin, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    online = open_set(of_hub(hub, subset="en"), config())
    monkeypatch.setenv("TUNESMITH_OFFLINE", "1")
    before = len(hubs.requests) + len(hubs.asked)
    offline = open_set(of_hub(hub, subset="en"), config())
    assert list(offline.raw()) == list(online.raw()) and offline.fingerprint() == online.fingerprint()
    with pytest.raises(ReferenceNotFoundError, match="network is switched off"):
        open_set(of_hub(hub, subset="zh"), config())
    with pytest.raises(ReferenceNotFoundError, match="network is switched off"):
        open_set(f"{hub}:org/plain", config())
    assert len(hubs.requests) + len(hubs.asked) == before


@pytest.mark.parametrize("hub", ["hf", "ms"])
def test_a_changed_file_is_fetched_again(hubs: Standin, hub: str) -> None:
    first = open_set(f"{hub}:org/plain", config()).fingerprint()
    if hub == "ms":  # a branch of ModelScope has no commit here, its files have hashes
        hubs.data["org/plain"]["train.jsonl"] = LINES.replace("q0", "Q0").encode()
        again = open_set("ms:org/plain", config())
        assert again.fingerprint() != first and "Q0" in questions("ms:org/plain")
    else:
        assert open_set("hf:org/plain", config()).fingerprint() == first
        assert len(hubs.gets("train.jsonl")) == 1


def test_an_interrupted_download_goes_on_where_it_stopped(hubs: Standin) -> None:
    hubs.data["org/plain"]["train.jsonl"] = LINES.encode() * 3000
    hubs.cut["train.jsonl"] = 400_000
    assert len(questions("ms:org/plain")) == 15_000
    first, second = hubs.gets("train.jsonl")
    assert first is None and second is not None and second.startswith("bytes=") and second != "bytes=0-"


def test_a_broken_connection_is_taken_up_again_while_streaming(hubs: Standin) -> None:
    hubs.cut["train.jsonl"] = 50
    assert questions(SetConfig(set="ms:org/plain", streaming=True)) == [f"q{i}" for i in range(5)]
    hubs.status["train.jsonl"] = 404
    with pytest.raises(ServerError, match="HTTP 404"):
        questions(SetConfig(set="ms:org/plain", streaming=True))


def test_parquet_is_streamed_in_parts(hubs: Standin) -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), buffer)
    hubs.data["org/set"] = {"data/train-00000-of-00001.parquet": buffer.getvalue()}
    assert questions(of_hub("hf", streaming=True)) == [f"q{i}" for i in range(5)]
    assert all(asked and asked.startswith("bytes=") for _, _, asked in hubs.requests)


def test_a_bare_name_is_looked_for_on_each_hub(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    assert questions("org/plain") == [f"q{i}" for i in range(5)]
    assert open_set("org/plain", config()).place.startswith("hf:")
    monkeypatch.setenv("TUNESMITH_HUBS", "ms")
    assert open_set("org/plain", config()).place.startswith("ms:")
    monkeypatch.setenv("TUNESMITH_HUBS", "hf,ms")
    with pytest.raises(ReferenceNotFoundError, match=r"2 places:\n  - Hugging Face.*\n  - ModelScope"):
        open_set("org/none", config())


def test_the_second_url_of_an_entry_is_taken_when_the_first_fails(hubs: Standin, tmp_path: Path) -> None:
    entry = {"hf_hub_url": "org/gone", "ms_hub_url": "org/plain", "num_samples": 3}
    put(tmp_path / "dataset_info.json", {"mine": entry})
    assert len(questions("mine")) == 3
    progress = Counting()
    open_set(SetConfig(set="mine", streaming=True), config(), progress)


def test_a_hub_that_lists_impossible_files_is_refused(hubs: Standin) -> None:
    hubs.data["org/plain"]["../../escape.jsonl"] = b"{}"
    for hub in ("hf", "ms"):
        with pytest.raises(ServerError, match="impossible file"):
            open_set(f"{hub}:org/plain", config())
