"""What is said of any quantized model: its bytes, its weights, and whether they were left alone. Knows no kind by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Size:
    """``weights``: how many numbers the base has; ``stored``: bytes it takes in memory, scales included."""

    weights: int
    stored: int

    def in_words(self, what: str) -> str:
        """``base hqq 4 bit, 0.07 GiB instead of 0.26``: the latter is what 16 bits a weight would take."""
        return f"base {what}, {self.stored / GIB:.2f} GiB instead of {2 * self.weights / GIB:.2f}"


def size_of(model: Any) -> Size:
    """Measured on the tensors of ``model``; tensors that are shared count once."""
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(model)}
    return Size(weights_of(model), sum(stored.values()))


def weights_of(model: Any) -> int:
    """How many numbers the model's parameters stand for: a packed weight counts as what it was packed from."""
    total, packed = 0, set()
    for module in model.modules():
        if is_packed(module):
            packed |= {id(p) for p in module.parameters(recurse=False) if p is not module.bias}
            total += module.in_features * module.out_features
    return total + sum(p.numel() for p in model.parameters() if id(p) not in packed)


def is_packed(module: Any) -> bool:
    """Whether ``module`` is a linear layer whose weight is not kept as [out, in] floating point numbers."""
    from torch import nn

    from tunesmith.models.quantization._linear import FrozenLinear

    return isinstance(module, FrozenLinear) or (
        isinstance(module, nn.Linear) and type(module.weight).__name__ in ("Params4bit", "Int8Params")
    )


def is_quantized(model: Any) -> bool:
    """Whether any layer of ``model`` is packed."""
    return any(is_packed(module) for module in model.modules())


def packed_weights(model: Any) -> list[tuple[int, int, tuple[int, ...]]]:
    """What tells that nobody replaced or rewrote a packed weight: identity, version and shape of each."""
    packed = [module.weight for module in model.modules() if is_packed(module)]
    return [(w.data_ptr(), w._version, tuple(w.shape)) for w in packed]


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():  # bitsandbytes keeps its scales beside the parameter
        if not is_packed(module):
            continue
        states = [getattr(module.weight, "quant_state", None)]
        states.append(getattr(states[0], "state2", None))
        for state in states:
            yield from (t for t in (getattr(state, n, None) for n in ("absmax", "code", "offset")) if t is not None)
        for name in ("SCB", "CB"):
            tensor = getattr(module.weight, name, None)
            if tensor is not None:
                yield tensor
