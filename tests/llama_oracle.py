"""A real ``llama_model_quantize`` to compare with: libllama as the npm package @node-llama-cpp/linux-x64 carries it (MIT).

An oracle for tests, no part of Tunesmith. The package is fetched once into the tests' cache and checked by its SHA-256;
``python tests/llama_oracle.py`` fetches it. It runs in a process of its own, since its libraries have the names of others'.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEST_HOME = Path(os.environ.get("TUNESMITH_TEST_HOME", Path.home() / ".cache" / "tunesmith-tests"))
ARCHIVE = "linux-x64-3.22.1.tgz"
SHA256 = "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0"


def oracle() -> Path:
    """The folder with libllama. Raises OSError: another platform, no registry, or another file."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise OSError("the package is for Linux on x86-64")
    archive = TEST_HOME / "npm" / ARCHIVE
    if not archive.is_file():
        from published import REGISTRY

        with urllib.request.urlopen(f"{REGISTRY}/@node-llama-cpp/linux-x64/-/{ARCHIVE}", timeout=60) as response:
            content = response.read()
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise OSError(f"{ARCHIVE} is another file (its SHA-256 differs)")
        archive.parent.mkdir(parents=True, exist_ok=True)
        part = archive.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(content)
        part.replace(archive)
    folder = TEST_HOME / "npm" / ARCHIVE.removesuffix(".tgz")
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        with tarfile.open(archive) as packed:
            packed.extractall(part, filter="data")
        try:
            part.rename(folder)
        except OSError:  # another test process was quicker
            if not folder.is_dir():
                raise
    return folder / "package" / "bins" / "linux-x64"


class _Importance(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


class _Params(ctypes.Structure):
    """``llama_model_quantize_params`` of llama.cpp v0.5.0 (include/llama.h)."""

    _fields_ = [
        ("nthread", ctypes.c_int32), ("ftype", ctypes.c_int), ("output_tensor_type", ctypes.c_int), ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool), ("quantize_output_tensor", ctypes.c_bool), ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool), ("keep_split", ctypes.c_bool), ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.POINTER(_Importance)), ("kv_overrides", ctypes.c_void_p), ("tt_overrides", ctypes.c_void_p),
        ("prune_layers", ctypes.c_void_p),
    ]  # fmt: skip


Job = tuple[Path, dict[int, Path], Path | None]
"""A GGUF, the files to make of it by their file type, importances."""


def quantize(source: Path, made: dict[int, Path], importance: Path | None = None, threads: int = 2) -> dict[int, str]:
    """Have ``llama_model_quantize`` make ``made`` (file type -> file) from the GGUF ``source``; file type -> why it did not.

    ``importance``: an .npz (tensor -> means), or a .gguf as llama-imatrix writes it, read by llama.cpp's own functions and divided as
    llama-quantize divides.
    """
    return quantize_each([(source, made, importance)], threads)[0]


def quantize_each(jobs: Sequence[Job], threads: int = 2) -> list[dict[int, str]]:
    """``quantize`` of each (source, made, importance), in one process: the tables that types below 4 bits search take it 20 s."""
    told = [
        {
            "source": str(source),
            "made": {k: str(v) for k, v in made.items()},
            "importance": str(importance or ""),
            "threads": threads,
        }
        for source, made, importance in jobs
    ]
    done = subprocess.run(
        [sys.executable, __file__, "jobs"], input=json.dumps(told), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [{int(k): v for k, v in failed.items()} for failed in json.loads(done.stdout.splitlines()[-1])]


def _main(jobs: list[dict[str, Any]]) -> None:
    folder = oracle()
    for name in ("libggml-base.so", "libggml.v0.5.0.so"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    lib = ctypes.CDLL(str(folder / "libllama.v0.5.0.so"))
    said: list[str] = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    listener = callback(lambda level, text, data: said.append((text or b"").decode("utf-8", "replace")))
    lib.llama_log_set.argtypes = [callback, ctypes.c_void_p]
    lib.llama_log_set(listener, None)
    lib.llama_model_quantize_default_params.restype = _Params
    lib.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Params)]
    lib.llama_backend_init()
    print(json.dumps([_made(job, folder, lib, said) for job in jobs]))


def _made(job: dict[str, Any], folder: Path, lib: Any, said: list[str]) -> dict[str, str]:
    import numpy as np

    kept, importance = [], None
    if job["importance"]:
        known = (
            _read_imatrix(folder, job["importance"])
            if job["importance"].endswith(".gguf")
            else np.load(job["importance"])
        )
        kept = [(name.encode(), np.ascontiguousarray(known[name], np.float32)) for name in known]
        importance = (_Importance * (len(kept) + 1))()
        for i, (name, data) in enumerate(kept):
            importance[i] = _Importance(name, data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), data.size)
    failed = {}
    for file_type, out in job["made"].items():
        params = lib.llama_model_quantize_default_params()
        assert params.ftype == 7 and params.quantize_output_tensor and not params.pure, "another layout"
        params.nthread, params.ftype = job["threads"], int(file_type)
        if importance is not None:
            params.imatrix = ctypes.cast(importance, ctypes.POINTER(_Importance))
        said.clear()
        if lib.llama_model_quantize(job["source"].encode(), out.encode(), ctypes.byref(params)):
            failed[file_type] = "".join(said)[-400:]
    return failed


def _read_imatrix(folder: Path, file: str) -> dict[str, Any]:
    """Tensor -> means."""
    import numpy as np

    base, pointer = ctypes.CDLL(str(folder / "libggml-base.so")), ctypes.c_void_p

    class Init(ctypes.Structure):
        _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p))]

    for name, result, arguments in (
        ("gguf_init_from_file", pointer, [ctypes.c_char_p, Init]),
        ("gguf_find_key", ctypes.c_int64, [pointer, ctypes.c_char_p]),
        ("gguf_get_val_u32", ctypes.c_uint32, [pointer, ctypes.c_int64]),
        ("gguf_get_val_str", ctypes.c_char_p, [pointer, ctypes.c_int64]),
        ("ggml_get_first_tensor", pointer, [pointer]),
        ("ggml_get_next_tensor", pointer, [pointer, pointer]),
        ("ggml_get_name", ctypes.c_char_p, [pointer]),
        ("ggml_get_data_f32", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("ggml_nelements", ctypes.c_int64, [pointer]),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    context = ctypes.c_void_p()
    opened = base.gguf_init_from_file(file.encode(), Init(False, ctypes.pointer(context)))
    assert opened, f"llama.cpp cannot read {file}"
    assert base.gguf_get_val_str(opened, base.gguf_find_key(opened, b"general.type")) == b"imatrix"
    assert base.gguf_find_key(opened, b"imatrix.datasets") >= 0
    for key in (b"imatrix.chunk_count", b"imatrix.chunk_size"):
        assert base.gguf_get_val_u32(opened, base.gguf_find_key(opened, key)) > 0
    tensors: dict[str, Any] = {}
    one = base.ggml_get_first_tensor(context)
    while one:
        data = np.ctypeslib.as_array(base.ggml_get_data_f32(one), (base.ggml_nelements(one),))
        tensors[base.ggml_get_name(one).decode()] = data.astype(np.float32)
        one = base.ggml_get_next_tensor(context, one)
    means = {}
    for name in [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]:
        counts = np.rint(tensors[f"{name}.counts"])
        sums = tensors[f"{name}.in_sum2"].reshape(len(counts), -1)
        means[name] = np.stack([s / c if c > 0 else np.ones_like(s) for s, c in zip(sums, counts)])
    return means


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _main(json.load(sys.stdin))
    else:
        try:
            print(oracle())
        except OSError as error:
            print(f"llama.cpp's quantizer cannot be fetched, tests that compare with it will be skipped: {error}")
