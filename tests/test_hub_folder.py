"""Paths: headers read without torch agree with the real safetensors reader; broken folders are refused in plain words."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from hub_standin import write_model
from tunesmith.config.errors import ReferenceNotFoundError, UserError
from tunesmith.hub.choose import best_gguf, choose
from tunesmith.hub.headers import read_config, read_header, weights_of
from tunesmith.hub.resolve import resolve_adapter, resolve_model


def raw(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + body)
    return path


def test_header_agrees_with_the_real_reader(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.zeros((0, 4), np.float16), "c": np.array(7, np.int64)}
    save_file(tensors, file, metadata={"format": "pt"})
    header = read_header(file)
    with safe_open(file, "np") as real:
        assert {t.name for t in header.tensors} == set(real.keys())
        for tensor in header.tensors:
            assert list(tensor.shape) == real.get_slice(tensor.name).get_shape()
            assert tensor.dtype == real.get_slice(tensor.name).get_dtype()
        assert header.metadata == real.metadata()
    assert {t.name: t.size for t in header.tensors} == {"a": 24, "b": 0, "c": 8}
    weights = weights_of(tmp_path)
    assert (weights.size, weights.elements) == (32, 7)


def test_shards_are_one_set_of_weights(tmp_path: Path) -> None:
    write_model(tmp_path, shards=3)
    weights = weights_of(tmp_path)
    assert len(weights.files) == 3 and weights.elements == 3 * 64 * 4 and weights.size == 3 * 64 * 4 * 4
    assert read_config(tmp_path)["model_type"] == "llama"


ONE = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("header", "body", "length", "words"),
    [
        (ONE, b"1234567", None, "cut short"),
        (ONE, b"123456789", None, "longer than"),
        (ONE, b"", 10**6, "cut short"),
        (ONE, b"", 2**63, "no safetensors file"),
        (b"[" * 5000, b"", None, "JSON"),
        (b"[]", b"", None, "JSON object"),
        (b'{"a": 1, "a": 2}', b"", None, "twice"),
        (b"\xff\xfe", b"", None, "JSON"),
        ({"w": 1}, b"", None, "cannot be true"),
        ({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"", None, "cannot be true"),
        ({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234", None, "cannot be true"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"", None, "cannot be true"),
        ({"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}, b"", None, "cannot be true"),
        ({"w": {"dtype": "X1", "shape": [2], "data_offsets": [0, 8]}}, b"", None, "unknown type"),
        ({**ONE, "v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"0" * 12, None, "overlap"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"0" * 12, None, "gap"),
        ({"__metadata__": {"a": 1}, **ONE}, b"0" * 8, None, "__metadata__"),
    ],
)
def test_impossible_headers_are_refused(
    tmp_path: Path, header: Any, body: bytes, length: int | None, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_header(raw(tmp_path / "model.safetensors", header, body, length))
    assert words in caught.value.message and caught.value.hint


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_header_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    for content in (data, struct.pack("<Q", len(data)) + data):
        file.write_bytes(content)
        try:
            read_header(file)
        except UserError as error:
            assert error.hint


def test_a_whole_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", shards=2)
    found = resolve_model(str(folder))
    assert (found.path, found.layout, found.gguf_file) == (folder, "safetensors", "")
    assert found.license_files == (folder / "LICENSE",)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"1 of 3 shards are missing \(model-00002-of-00003.safetensors\)"):
        resolve_model(str(folder))


def test_cut_shard_is_found(tmp_path: Path) -> None:
    folder = write_model(tmp_path, shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors is cut short"):
        resolve_model(str(folder))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "x.bin"])
def test_index_cannot_point_outside(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model", shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(UserError, match=r"no safetensors file of this folder"):
        resolve_model(str(folder))


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    folder = write_model(tmp_path, shards=2)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["lost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"promises 1 tensors .*lost\.weight"):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "holds no files"),
        (["config.json"], "weights missing"),
        (["notes.txt"], "config.json and weights missing"),
        (["config.json", "pytorch_model.bin"], "only as *.bin, which are pickled"),
        (["config.json", "consolidated.00.pth"], "pickled"),
        (["config.json", "other.safetensors"], "no model.safetensors"),
        (["model.safetensors"], "config.json missing"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
        (["config.json", "adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
    ],
)
def test_what_is_no_model_is_said(tmp_path: Path, files: list[str], words: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(UserError) as caught:
        resolve_model(str(folder))
    assert words in caught.value.message and caught.value.hint


def test_pickled_weights_name_the_safetensors_way(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(UserError, match="pickled") as caught:
            resolve_model(str(path))
        assert "safetensors" in str(caught.value.hint)


def test_gguf_files_and_folders(tmp_path: Path) -> None:
    file = tmp_path / "my-model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<I", 3))
    for text in (str(file), str(tmp_path)):
        found = resolve_model(text)
        assert (found.layout, found.gguf_file, found.file) == ("gguf", file.name, file)
    (tmp_path / "my-model-F16.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3))
    assert resolve_model(str(tmp_path)).gguf_file == "my-model-F16.gguf"
    file.write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="not a GGUF"):
        resolve_model(str(file))
    with pytest.raises(ReferenceNotFoundError, match="no file or folder"):
        resolve_model("./nothing-here.gguf")


def test_adapters(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    save_file({"lora": np.ones(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    assert resolve_adapter(str(tmp_path)).path == tmp_path
    with pytest.raises(UserError, match="is an adapter, not a whole model") as caught:
        resolve_model(str(tmp_path))
    assert f"org/base+{tmp_path}" in str(caught.value.hint)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match="pickled"):
        resolve_adapter(str(tmp_path))
    with pytest.raises(UserError, match="model with an adapter"):
        resolve_model(f"demo+{tmp_path}")


@pytest.mark.parametrize("text", ["run:a@best", "ollama:x:7b", "http://localhost:1/v1#m"])
def test_what_is_resolved_elsewhere(text: str) -> None:
    with pytest.raises(UserError, match=text.replace("+", r"\+")):
        resolve_model(text)


def test_choice_takes_the_weights_once() -> None:
    there = [
        "config.json", "README.md", "LICENSE.txt", "USE_POLICY.md", "NOTICE", "tokenizer.model", "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja", "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin",
        "consolidated.safetensors", "onnx/config.json", "modeling.py", "pytorch_model.bin.index.json", "figure.png",
    ]  # fmt: skip
    assert set(choose(there, "x").files) == {
        "config.json", "README.md", "LICENSE.txt", "USE_POLICY.md", "NOTICE", "tokenizer.model", "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja", "model.safetensors",
    }  # fmt: skip
    shards = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert set(choose(["config.json", *shards, "consolidated.safetensors"], "x").files) == {"config.json", *shards}


def test_choice_among_ggufs() -> None:
    assert best_gguf(["m-Q4_K_M.gguf", "m-q8_0.gguf", "mmproj-F16.gguf"], "x") == "m-q8_0.gguf"
    assert best_gguf(["m-Q8_0.gguf", "bf16/m.BF16.gguf", "m-f16.gguf"], "x") == "bf16/m.BF16.gguf"
    assert best_gguf(["m.gguf"], "x") == "m.gguf"
    assert best_gguf(["m-Q4_K_M.gguf", "imatrix.gguf"], "x") == "m-Q4_K_M.gguf"
    with pytest.raises(UserError, match="2 GGUF files") as caught:
        best_gguf(["m-Q4_K_M.gguf", "m-Q5_K_M.gguf"], "x")
    assert "org/name/FILE.gguf" in str(caught.value.hint) and "m-Q5_K_M.gguf" in str(caught.value.hint)
    with pytest.raises(UserError, match="in one piece"):
        best_gguf(["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"], "x")
    choice = choose(["a/m-Q4_0.gguf", "a/m-Q5_0.gguf", "LICENSE"], "x", file="a/m-Q5_0.gguf")
    assert choice.gguf == "a/m-Q5_0.gguf" and set(choice.files) == {"LICENSE", "a/m-Q5_0.gguf"}
    for there, words in ((["pytorch_model.bin"], "only pickled"), (["x.png"], "no model.safetensors")):
        with pytest.raises(UserError, match=words):
            choose(there, "x")
