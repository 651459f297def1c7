"""How far a server's model is from a reference, when the server tells only its most likely tokens. Knows no server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.config.errors import UserError

if TYPE_CHECKING:
    import numpy as np

LEAST = 1e-9
"""Least probability of the rest: what float32 leaves of 1 minus a sum is noise below it."""


def lower_bound(reference: np.ndarray, told: Sequence[tuple[Sequence[int], float]]) -> tuple[float, bool]:
    """(lower bound of the KL divergence in nats, whether both find the same token most likely) at one position.

    ``reference``: natural-log probabilities [vocabulary]. ``told``: (ids, natural-log probability) of the tokens the server
    named, most likely first; several ids when tokens of one text cannot be told apart. With p the reference and q the server,
    both summed over these groups B_1 … B_k and over one bucket R of all other tokens:

        KL(p ‖ q) ≥ Σ_i p(B_i) log(p(B_i) / q(B_i)) + p(R) log(p(R) / q(R))

    since joining outcomes never adds to a divergence (Kullback and Leibler, 1951, theorem 4.1). Raises UserError when nothing was told.
    """
    import numpy as np

    groups = [(list(ids), value) for ids, value in told if len(ids)]
    if not groups:
        raise UserError("the server told no probabilities that can be compared")
    logs = np.asarray(reference, np.float64)
    logs = logs - (logs.max() + math.log(float(np.exp(logs - logs.max()).sum())))
    p = [float(np.exp(logs[ids]).sum()) for ids, _ in groups]
    q = [math.exp(value) for _, value in groups]
    p.append(max(1.0 - sum(p), LEAST))
    q.append(max(1.0 - sum(q), LEAST))
    kl = sum(a * math.log(a / max(b, LEAST)) for a, b in zip(p, q) if a > 0)
    return max(kl, 0.0), int(logs.argmax()) in groups[0][0]
