"""Some items of several stores, in an order of their own: what a training run learns from. Nothing is copied."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from tunesmith.render.store import Store


class Selection(Sequence[Any]):
    """``places``: (store, item of that store) of each, shape (N, 2); the same item may come several times.

    ``lengths`` and ``weights`` are there without making any item.
    """

    def __init__(self, stores: Sequence[Store], places: Sequence[tuple[int, int]]) -> None:
        self.stores = tuple(stores)
        self.places = np.array(places, np.int64).reshape(-1, 2)
        self.lengths = self._gathered([store.lengths for store in self.stores], np.int64)
        self.weights = self._gathered([store.weights for store in self.stores], np.float64)

    @property
    def digest(self) -> str:
        """SHA-256 over the content of the items in their order, wherever they came from."""
        whole = hashlib.sha256(self.places.tobytes())
        for store in self.stores:
            whole.update(store.digest.encode())
        return whole.hexdigest()

    def fact(self, name: str) -> Any:
        """What the stores of these items all say under ``name``; None when they say different things, or nothing."""
        told = [self.stores[i].facts.get(name) for i in np.unique(self.places[:, 0])]
        return told[0] if told and all(one == told[0] for one in told) else None

    def number(self, name: str) -> np.ndarray:
        """One number of every item; 0 where its stage has no such number."""
        known = [store.number(name) for store in self.stores]
        filled = [n if len(n) == len(s) else np.zeros(len(s), np.int64) for n, s in zip(known, self.stores)]
        return self._gathered(filled, np.int64)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        store, item = self.places[index]
        return self.stores[store][int(item)]

    def _gathered(self, parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
        values = np.zeros(len(self.places), dtype)
        for i, part in enumerate(parts):
            of_part = self.places[:, 0] == i
            values[of_part] = part[self.places[of_part, 1]]
        return values
