"""The C interface of llama.cpp, called in this process. Knows pointers and structs; knows no conversation.

``xllamacpp`` ships llama.cpp with its C functions exported, but its Python classes give only the top n log-probabilities of
generated tokens. The parity check needs whole distributions for given token ids, so the C functions are called directly.

Structs travel by value, and their layout changes between versions of llama.cpp. Only fields at the offsets below are read
or written; the default values found there are compared with the known ones when the library is opened, and after a
context is made its size and threads are asked back. Another layout is one clear ``UserError``, never a wrong number.
Layout source: ``include/llama.h`` of llama.cpp (``llama_context_params``, ``llama_model_params``, ``llama_batch``).
"""

from __future__ import annotations

import ctypes
import logging
import signal
import struct
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any

from tunesmith.config.errors import UserError

log = logging.getLogger("tunesmith.llamacpp")
lines: deque[str] = deque(maxlen=50)

LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

# name -> (offset in bytes, struct format, default value that proves the layout)
CONTEXT_FIELDS: dict[str, tuple[int, str, int | float]] = {
    "n_ctx": (0, "I", 512),
    "n_batch": (4, "I", 2048),
    "n_ubatch": (8, "I", 512),
    "n_seq_max": (12, "I", 1),
    "n_outputs_max": (20, "I", 0),
    "n_outputs_max_per_seq": (24, "I", 1),
    "n_threads": (28, "i", 4),
    "n_threads_batch": (32, "i", 4),
    "rope_scaling_type": (40, "i", -1),
    "flash_attn_type": (52, "i", -1),
    "yarn_ext_factor": (64, "f", -1.0),
    "type_k": (104, "i", 1),
    "type_v": (108, "i", 1),
}
MODEL_FIELDS: dict[str, tuple[int, str, int | float]] = {
    "n_gpu_layers": (16, "i", -1),
    "split_mode": (20, "i", 1),
    "vocab_only": (72, "?", False),
    "check_tensors": (73, "?", False),
    "use_extra_bufts": (74, "?", True),
}


class _Params(ctypes.Structure):
    """A params struct seen as bytes. Longer than the real one: what lies behind it is copied and never read."""

    _fields_ = [("bytes", ctypes.c_uint64 * 64)]

    def get(self, field: tuple[int, str, Any]) -> Any:
        return struct.unpack_from("=" + field[1], bytes(self), field[0])[0]

    def set(self, field: tuple[int, str, Any], value: Any) -> None:
        struct.pack_into("=" + field[1], memoryview(self).cast("B"), field[0], value)


class Batch(ctypes.Structure):
    """``llama_batch``: tokens, their positions and sequences, and for which of them logits are wanted."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def _keep(level: int, text: bytes | None, _data: Any) -> None:
    """llama.cpp's log goes to Python's logging (debug); the last lines are kept for error messages."""
    try:
        line = (text or b"").decode("utf-8", "replace").rstrip()
        if line.strip("."):
            lines.append(line)
            log.debug(line)
    except Exception:  # an exception must not cross into C
        pass


_receive = LogCallback(_keep)
_held: list[tuple[Callable[..., Any], int]] = []


class _Held:
    """A signal handler that waits until llama.cpp has returned. Python runs handlers between any two steps of the main thread, those of
    ``_keep`` included, and what is raised there is lost: Ctrl-C would be swallowed."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None:
            if at.f_code is _keep.__code__:
                _held.append((self.handler, number))
                return
            at = at.f_back
        self.handler(number, frame)


def let_through() -> None:
    """Answer the signals that came while llama.cpp spoke; to be called when it has returned."""
    came = list(dict.fromkeys(_held))
    _held.clear()
    for handler, number in came:
        handler(number, None)


def _hold() -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # handlers run in the main thread only
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if callable(handler) and not isinstance(handler, _Held):
            signal.signal(number, _Held(handler))


def last_words(marker: str = "error") -> str:
    """The most telling of llama.cpp's last log lines."""
    telling = [line for line in lines if marker in line.lower() or "failed" in line.lower()]
    return (telling or list(lines) or ["no message"])[-1 if not telling else 0].strip()


def listen(lib: Any) -> None:
    """Have llama.cpp's words kept in ``lines``; again before each use, since xllamacpp's own logger takes them when it is imported."""
    _hold()
    lib.llama_log_set(_receive, None)


@cache
def library() -> Any:
    """The shared library, opened once, with its layout proved. Raises UserError if it cannot be used."""
    try:
        import xllamacpp.xllamacpp as extension
    except ImportError as error:
        raise UserError(
            f"llama.cpp cannot be loaded: {error}", hint="install it with: pip install 'xllamacpp>=2026.10'"
        ) from error
    lib = ctypes.CDLL(str(extension.__file__))
    pointer, text, i32 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    ids, pointers = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_void_p)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_log_set": (None, [LogCallback, pointer]),
        "llama_backend_init": (None, []),
        "llama_context_default_params": (_Params, []),
        "llama_model_default_params": (_Params, []),
        "llama_model_load_from_file": (pointer, [text, _Params]),
        "llama_model_free": (None, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_model_n_ctx_train": (i32, [pointer]),
        "llama_model_chat_template": (text, [pointer, text]),
        "llama_model_meta_val_str": (i32, [pointer, text, text, ctypes.c_size_t]),
        "llama_adapter_lora_init": (pointer, [pointer, text]),
        "llama_adapter_meta_val_str": (i32, [pointer, text, text, ctypes.c_size_t]),
        "llama_init_from_model": (pointer, [pointer, _Params]),
        "llama_free": (None, [pointer]),
        "llama_set_adapters_lora": (i32, [pointer, pointers, ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)]),
        "llama_n_ctx": (ctypes.c_uint32, [pointer]),
        "llama_n_batch": (ctypes.c_uint32, [pointer]),
        "llama_n_threads": (i32, [pointer]),
        "llama_n_threads_batch": (i32, [pointer]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_decode": (i32, [pointer, Batch]),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, i32]),
        "llama_vocab_n_tokens": (i32, [pointer]),
        "llama_vocab_bos": (i32, [pointer]),
        "llama_vocab_eos": (i32, [pointer]),
        "llama_vocab_eot": (i32, [pointer]),
        "llama_vocab_get_add_bos": (ctypes.c_bool, [pointer]),
        "llama_vocab_get_add_eos": (ctypes.c_bool, [pointer]),
        "llama_vocab_is_eog": (ctypes.c_bool, [pointer, i32]),
        "llama_vocab_get_text": (text, [pointer, i32]),
        "llama_tokenize": (i32, [pointer, text, i32, ids, i32, ctypes.c_bool, ctypes.c_bool]),
        "llama_token_to_piece": (i32, [pointer, i32, text, i32, i32, ctypes.c_bool]),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(lib, name)
        except AttributeError as error:
            raise other_layout(f"it does not export {name}") from error
        function.restype, function.argtypes = result, arguments
    lib.llama_backend_init()
    for what, params, fields in (
        ("llama_context_params", lib.llama_context_default_params(), CONTEXT_FIELDS),
        ("llama_model_params", lib.llama_model_default_params(), MODEL_FIELDS),
    ):
        for name, field in fields.items():
            if params.get(field) != field[2]:
                raise other_layout(f"{what}.{name} is {params.get(field)} by default, {field[2]} was expected")
    return lib


def other_layout(detail: str) -> UserError:
    from importlib.metadata import version

    return UserError(
        f"xllamacpp {version('xllamacpp')} carries a llama.cpp with another C interface: {detail}",
        hint="install the version Tunesmith was tested with: pip install 'xllamacpp==2026.10.11549'",
    )
