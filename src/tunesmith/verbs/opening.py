"""A model opened to be compared with, by what the machine has free; the only place that weighs the one against the other.

In this order, the first that fits: fp32 on the best device; fp32 in main memory; fp32 with one block's weights in memory, which tells
distributions and cannot answer; the 16 bits that the model is stored in, whose rounding the bound of a comparison then allows for. What
must answer goes through 16 bits first. When none fits, or all ran out of memory, ``NoRoomError`` says what is missing.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import Progress
from tunesmith.verbs.targets import Target, open_weights
from tunesmith.verbs.weights import is_adapter, is_part

if TYPE_CHECKING:
    import torch

    from tunesmith.export.blockwise import Blockwise
    from tunesmith.export.tensor_files import StoredTensor

T = TypeVar("T")
SPACE = 1.2
"""Times the size of its weights that a model takes while it is asked."""
KEPT_FREE, KEPT_SHARE = 2**30, 0.05
"""So many bytes of main memory, or this share of all, whichever is more, are left to the machine."""
SLACK = {"fp32": 0.0, "fp16": 0.001, "bf16": 0.01}
"""Mean KL (nats) that computing in these numbers may add to a comparison (bf16 on SmolLM2-135M: 0.0016; fp16 has three bits more)."""
NAMES = {"BF16": "bf16", "F16": "fp16"}
FLOATS = {"F64", "F32", "BF16", "F16"}


MORE = "close other programs, or use a machine with more memory, and export again"


class NoRoomError(UserError):
    """A model that cannot be opened on this machine. ``message``: what it needs and what is free."""


@dataclass(frozen=True)
class Way:
    """How a model is opened: its numbers (fp32, bf16, fp16), where, whether one block at a time, and the bytes that takes."""

    precision: str
    device: torch.device
    needs: int
    blocks: bool = False

    def __str__(self) -> str:
        if self.precision != "fp32":
            return f"in {self.precision}, as it is stored"
        return "in fp32, one block at a time" if self.blocks else "in fp32"

    @property
    def slack(self) -> float:
        """Mean KL (nats) that its rounding may add."""
        return SLACK[self.precision]


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken on the device: in main memory what the machine needs for itself is left to it."""
    from tunesmith.models import devices

    found = devices.memory(device)
    return max(0, found.free - max(KEPT_FREE, int(KEPT_SHARE * found.total))) if device.type == "cpu" else found.free


def in_gib(count: int) -> str:
    """``14.6 GiB``; below a tenth in MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.0f} MiB"


def opened(
    target: Target,
    renderer: Any,
    name: str,
    sequences: Sequence[Sequence[int]],
    work: Callable[[Any, Way], T],
    progress: Progress,
    *,
    as_trained: bool = False,
    answers: bool = False,
) -> T:
    """``work(engine, way)`` with the target opened in the first way that fits; the next way is tried when one runs out of memory.

    ``sequences``: all that the engine will be asked for. ``as_trained``: with the base as the run quantized it. ``answers``: whether it
    should generate, if it can. Raises NoRoomError, and whatever ``work`` raises.
    """
    missing: list[str] = []
    for way in ways(target, sequences, as_trained=as_trained, answers=answers):
        if isinstance(way, str):
            missing.append(way)
            continue
        if (free := _free(way)) < way.needs:
            missing.append(f"{way}{_on(way)} it needs {in_gib(way.needs)}, {in_gib(free)} are free")
            continue
        try:
            engine = _open(target, way, renderer, name, sequences, progress, as_trained)
            try:
                return work(engine, way)
            finally:
                engine.close()
                del engine
        except _CannotBeRunSoError as error:
            missing.append(f"{way} it cannot be run ({error.message})")
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            missing.append(f"{way}{_on(way)} it ran out of memory ({in_gib(free)} were free)")
        forget(way.device)
    raise NoRoomError(
        "; ".join(missing),
        hint=MORE,
    )


def room_to_ask(target: Target, precision: str | None = None) -> None:
    """Raises NoRoomError when the model does not fit in ``precision`` (default: what it answers in here)."""
    from tunesmith.models.devices import best_device
    from tunesmith.models.precision import resolve_precision

    folder = target.learned if _complete(target) else target.base.folder
    assert folder is not None
    if precision is None:
        precision, _ = resolve_precision(target.config.precision if target.config else "auto", best_device())
    way = Way(precision, best_device(), _weight(_tensors(folder), 4 if precision == "fp32" else 2))
    if (free := _free(way)) < way.needs:
        raise NoRoomError(f"in {precision}{_on(way)} it needs {in_gib(way.needs)}, {in_gib(free)} are free", hint=MORE)


def ways(target: Target, sequences: Sequence[Sequence[int]], *, as_trained: bool, answers: bool) -> Iterator[Way | str]:
    """The ways to open the target, best first; a text for one that this model cannot be opened in. Raises ExportError for damaged files."""
    import torch

    from tunesmith.export.model_config import load_config
    from tunesmith.models.devices import best_device
    from tunesmith.models.quantization._opening import stored_method

    folder = target.learned if _complete(target) else target.base.folder
    assert folder is not None
    stored = _tensors(folder)
    beside = () if target.learned in (None, folder) else ("adapter_model*.safetensors", "trained_weights*.safetensors")
    added = sum(p.stat().st_size for pattern in beside for p in Path(str(target.learned)).glob(pattern))
    words = int(getattr(load_config(folder).get_text_config(), "vocab_size", 0))
    more = 3 * 4 * words * max(map(len, sequences), default=1) + added  # logits, their logarithms, and a copy of them
    packed = stored_method(folder) is not None or (
        as_trained and target.config is not None and target.config.model.quantize is not None
    )
    places = list(dict.fromkeys((best_device(), torch.device("cpu"))))
    if packed:  # as it is stored, or smaller once it is read
        yield from (Way("fp32", place, _weight(stored, 0) + more) for place in places)
        return
    whole = [Way("fp32", place, _weight(stored, 4) + more) for place in places]
    kinds: Counter[str] = Counter()
    for tensor in stored.values():
        kinds[tensor.served] += tensor.nbytes
    half = NAMES.get(kinds.most_common(1)[0][0])
    halves = [Way(half, place, _weight(stored, 2) + more) for place in places] if half is not None else []
    yield from whole
    if answers:
        yield from halves
    try:
        needs = int(SPACE * blocks_of(target, torch.device("cpu")).bytes) + more
        needs += 2 * 4 * sum(map(len, sequences)) * _width(folder)
        yield from (Way("fp32", place, needs, blocks=True) for place in places)
    except ExportError as error:
        yield f"one block at a time it cannot be run ({error.message})"
    if not answers:
        yield from halves


def blocks_of(target: Target, device: torch.device) -> Blockwise:
    """The target without weights, to be run one block at a time. Raises ExportError when it cannot be."""
    from tunesmith.export.blockwise import Blockwise
    from tunesmith.models.adapters.chain import merged_first
    from tunesmith.models.changes import read_changes
    from tunesmith.models.trained import STEM, read_form

    config, learned = target.config, target.learned
    if config is not None and config.model.trust_remote_code:
        raise ExportError("its code is not transformers' own")
    if learned is None or _complete(target):
        if learned is None and config is not None and (config.model.add_tokens or config.model.add_special_tokens):
            raise ExportError("tokens were added to it")
        folder = learned or target.base.folder
        return Blockwise(folder, _tensors(folder), device)
    if read_changes(learned):
        raise ExportError("its form was changed in training")
    stored = _tensors(target.base.folder)
    if is_part(learned):
        part = _tensors(learned, STEM)
        if read_form(learned).growth is not None or not part.keys() <= stored.keys():
            raise ExportError("its layers are not those of its base")
        return Blockwise(target.base.folder, stored | part, device)
    if merged_first(learned):
        raise ExportError("other adapters were merged into its base first")
    return Blockwise(target.base.folder, stored, device, learned)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that memory ran out: of a device, of torch on a CPU, of Python or of the system."""
    import errno

    import torch

    one: BaseException | None = error
    while one is not None:
        if isinstance(one, (MemoryError, torch.OutOfMemoryError)) or getattr(one, "errno", None) == errno.ENOMEM:
            return True
        if isinstance(one, RuntimeError) and any(
            words in str(one).lower() for words in ("out of memory", "not enough memory", "can't allocate memory")
        ):
            return True
        one = one.__cause__ or one.__context__
    return False


def forget(device: torch.device) -> None:
    """Give the device's memory back that nothing uses any more."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type in ("mps", "xpu"):
        getattr(torch, device.type).empty_cache()


def _on(way: Way) -> str:
    return "" if way.device.type == "cpu" else f" on {way.device.type}"


def _free(way: Way) -> int:
    """Bytes free for it: weights go through main memory on their way to a device."""
    import torch

    here = free_memory(torch.device("cpu"))
    return here if way.device.type == "cpu" else min(here, free_memory(way.device))


class _CannotBeRunSoError(ExportError):
    """Of a model that has no blocks, or not of the kind that can be run one at a time."""


def _open(
    target: Target, way: Way, renderer: Any, name: str, sequences: Sequence[Sequence[int]], progress: Progress, as_trained: bool
) -> Any:  # fmt: skip
    from tunesmith.chat.transformers_engine import TransformersEngine
    from tunesmith.export.blockwise import BlockwiseEngine

    if not way.blocks:
        weights = open_weights(target, precision=way.precision, as_trained=as_trained, device=way.device)
        return TransformersEngine(weights, renderer, name)
    try:
        return BlockwiseEngine(blocks_of(target, way.device), sequences, name, progress)
    except ExportError as error:
        raise _CannotBeRunSoError(error.message, error.hint) from error


def _complete(target: Target) -> bool:
    """Whether what was learned is a whole model."""
    return target.learned is not None and not is_adapter(target.learned) and not is_part(target.learned)


def _tensors(folder: Path, stem: str = "model") -> dict[str, StoredTensor]:
    from tunesmith.export.tensor_files import read_model

    return read_model(folder, stem)


def _weight(stored: dict[str, StoredTensor], item: int) -> int:
    """Bytes in memory with ``item`` bytes for each float (0: as stored); packed numbers stay as they are."""
    return int(
        SPACE * sum(math.prod(t.shape) * item if item and t.dtype in FLOATS else t.nbytes for t in stored.values())
    )


def _width(folder: Path) -> int:
    from tunesmith.export.model_config import load_config

    return int(getattr(load_config(folder).get_text_config(), "hidden_size", 0))
