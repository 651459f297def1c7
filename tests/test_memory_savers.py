"""The memory-saving update rules against plain references written from their papers, and what they keep."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from model_fixtures import FAMILIES, SMALL
from tunesmith.config.errors import ConfigError
from tunesmith.config.plugins import load
from tunesmith.train import optimizer_state
from tunesmith.train.optimizers.base import parameter_groups
from tunesmith.train.updates.apollo import projection
from tunesmith.train.updates.badam import active_block, blocks_of, chosen
from tunesmith.train.updates.galore import leading_vectors
from tunesmith.train.updates.roles import is_matrix, of_vocabulary

MATRIX, TALL, NORM = (
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.norm.weight",
)
EMBEDDING, QUERY = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"
SHAPES = {MATRIX: (4, 6), TALL: (6, 4), NORM: (4,), EMBEDDING: (8, 4), QUERY: (4, 4)}
LR, B1, B2, EPS = 0.1, 0.9, 0.999, 1e-8
KINDS: dict[str, dict[str, Any]] = {
    "galore": {"kind": "galore", "rank": 2, "update_gap": 2},
    "apollo": {"kind": "apollo", "rank": 2, "update_gap": 2},
    "apollo-mini": {"kind": "apollo", "mini": True},
    "adam-mini": {"kind": "adam_mini", "head_dim": 2},
    "lomo": {"kind": "lomo"},
    "adalomo": {"kind": "lomo", "adaptive": True},
    "badam": {"kind": "badam", "switch_every": 2},
    "badam-ratio": {"kind": "badam", "mode": "ratio", "ratio": 0.25, "switch_every": 2, "mask": "scatter"},
}  # fmt: skip


def parameters(shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.nn.Parameter]:
    random = torch.Generator().manual_seed(1)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=random)) for name, shape in shapes.items()}


def build(named: dict[str, torch.nn.Parameter], settings: dict[str, Any], decay: float = 0.0) -> torch.optim.Optimizer:
    plugin = load("tunesmith.train.optimizers", settings["kind"])
    optimizer = plugin.build(parameter_groups(named, lr=LR, weight_decay=decay), plugin.Config(**settings))
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def gradient(name: str, shape: Any, step: int) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(step * 100 + len(name)))


def steps(named: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, numbers: Any) -> None:
    for step in numbers:
        for name, parameter in named.items():
            parameter.grad = gradient(name, parameter.shape, step)
        optimizer.step()


class Adam:
    """Adam's direction in numpy, straight from its paper's algorithm 1."""

    def __init__(self) -> None:
        self.m = self.v = np.float64(0)
        self.t = 0

    def __call__(self, g: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m, self.v = B1 * self.m + (1 - B1) * g, B2 * self.v + (1 - B2) * g * g
        found: np.ndarray = self.m / (1 - B1**self.t) / (np.sqrt(self.v / (1 - B2**self.t)) + EPS)
        return found


def as_array(tensor: torch.Tensor) -> np.ndarray:
    found: np.ndarray = tensor.detach().double().numpy().copy()
    return found


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    assert np.abs(as_array(found) - expected).max() < 2e-5


@pytest.mark.parametrize("kind", ["galore", "apollo", "badam"])
def test_vectors_and_embeddings_are_torch_s_adamw(kind: str) -> None:
    """What is not projected, and a whole block of BAdam, moves as torch's AdamW moves it, decay included."""
    names = [NORM] if kind == "badam" else [NORM, EMBEDDING]
    ours, theirs = parameters(), parameters()
    steps(ours, build(ours, KINDS[kind] | {"switch_every": 9} if kind == "badam" else KINDS[kind], decay=0.3), range(4))
    steps(theirs, torch.optim.AdamW(parameter_groups(theirs, lr=LR, weight_decay=0.3)), range(4))
    for name in names:
        assert torch.allclose(ours[name], theirs[name], atol=2e-6)


@pytest.mark.parametrize("name", [MATRIX, TALL])
def test_galore_is_the_paper_s_algorithm_2(name: str) -> None:
    """m <= n: P = U[:, :r] of the gradient of steps 0, 2, 4, W <- W - lr * 0.25 * P Adam(P^T G); m > n: from the right."""
    named = parameters()
    w, adam = as_array(named[name]), Adam()
    steps(named, build(named, KINDS["galore"]), range(5))
    for step in range(5):
        g = as_array(gradient(name, w.shape, step))
        if step % 2 == 0:
            u, _, v = np.linalg.svd(g)
            p = u[:, :2] if name == MATRIX else v.T[:, :2]
            p = p * np.sign(p[np.abs(p).argmax(0), range(2)])
        w = w - LR * 0.25 * (p @ adam(p.T @ g) if name == MATRIX else adam(g @ p) @ p.T)
    close(named[name], w)


def test_singular_vectors_do_not_depend_on_the_sign_lapack_gives() -> None:
    matrix = gradient("x", (5, 7), 0)
    assert torch.allclose(leading_vectors(matrix, 3, left=True), leading_vectors(-matrix, 3, left=True), atol=1e-5)
    stack = torch.stack([matrix, 2 * matrix])  # experts: each its own
    assert torch.allclose(leading_vectors(stack, 3, left=False)[1], leading_vectors(matrix, 3, left=False), atol=1e-5)


@pytest.mark.parametrize("kind", ["apollo", "apollo-mini"])
@pytest.mark.parametrize("name", [MATRIX, TALL])
def test_apollo_is_the_paper_s_algorithm_1(name: str, kind: str) -> None:
    """R = P G; s = |Adam(R)| / |R| per channel (mini: of the whole); the scaled gradient's norm grows by the given factor at most."""
    named = parameters()
    w, adam, before = as_array(named[name]), Adam(), math.inf
    rank, scale = (1, 128**0.5) if kind == "apollo-mini" else (2, 1.0)
    optimizer = build(named, KINDS[kind] | {"growth": 0.95})
    seeds, limited = [], 0
    for step in range(5):
        steps(named, optimizer, [step])
        seeds.append(optimizer.state[named[name]]["seed"])
        p = as_array(projection(seeds[-1], rank, 4, torch.device("cpu")))
        g = as_array(gradient(name, w.shape, step))
        wide = g if name == MATRIX else g.T
        r = p @ wide
        n = adam(r)
        s = (
            np.linalg.norm(n) / np.linalg.norm(r)
            if rank == 1
            else np.linalg.norm(n, axis=0) / np.linalg.norm(r, axis=0)
        )
        scaled = scale * wide * s
        length = np.linalg.norm(scaled)
        if length > 0.95 * before:
            scaled, length, limited = scaled * (0.95 * before / length), 0.95 * before, limited + 1
        before = length
        w = w - LR * (scaled if name == MATRIX else scaled.T)
    close(named[name], w)
    assert limited, "the limiter was never needed, so it was not tested"
    if rank == 2:  # drawn anew at steps 0, 2 and 4
        assert [a == b for a, b in itertools.pairwise(seeds)] == [True, False, True, False]


def test_a_random_projection_keeps_lengths_on_average() -> None:
    """P has entries of variance 1/r, so E |P x|^2 = |x|^2."""
    drawn = projection(7, 4000, 3, torch.device("cpu"))
    assert (drawn @ torch.tensor([1.0, 2.0, 2.0])).norm() == pytest.approx(3.0, rel=0.05)
    assert torch.equal(drawn, projection(7, 4000, 3, torch.device("cpu")))
    assert not torch.equal(drawn, projection(8, 4000, 3, torch.device("cpu")))


def test_apollo_stays_finite_without_a_gradient() -> None:
    named = parameters({MATRIX: (4, 6)})
    optimizer = build(named, KINDS["apollo"])
    named[MATRIX].grad = torch.zeros(4, 6)
    before = named[MATRIX].detach().clone()
    optimizer.step()
    assert torch.equal(named[MATRIX], before)
    steps(named, optimizer, [1])
    assert torch.isfinite(named[MATRIX]).all() and not torch.equal(named[MATRIX], before)


def test_adam_mini_has_one_second_moment_per_block() -> None:
    """Queries by head (2 rows of 4), matrices and embeddings by row, a vector whole: v_b = mean of g^2 over the block."""
    named = parameters()
    start = {name: as_array(parameter) for name, parameter in named.items()}
    optimizer = build(named, KINDS["adam-mini"])
    steps(named, optimizer, range(3))
    rows_of_block = {MATRIX: 1, TALL: 1, NORM: 4, EMBEDDING: 1, QUERY: 2}
    for name, rows in rows_of_block.items():
        m, v, w = np.zeros_like(start[name]), np.zeros(SHAPES[name][0] // rows), start[name]
        for step in range(3):
            g = as_array(gradient(name, w.shape, step))
            m = B1 * m + (1 - B1) * g
            v = B2 * v + (1 - B2) * np.array([(block**2).mean() for block in np.split(g, len(v))])
            each = np.repeat(v, rows).reshape(-1, *[1] * (w.ndim - 1))
            w = w - LR * m / (1 - B1 ** (step + 1)) / (np.sqrt(each / (1 - B2 ** (step + 1))) + EPS)
        close(named[name], w)
        assert optimizer.state[named[name]]["block_sq"].numel() == len(v)


def test_lomo_is_sgd_and_keeps_nothing() -> None:
    """W1 = (1 - 0.1 * 0.5) W - 0.1 G, and no state."""
    named = parameters({MATRIX: (4, 6)})
    expected = 0.95 * named[MATRIX].detach() - LR * gradient(MATRIX, (4, 6), 0)
    optimizer = build(named, KINDS["lomo"], decay=0.5)
    steps(named, optimizer, [0])
    assert torch.allclose(named[MATRIX], expected, atol=1e-6) and not any(optimizer.state.values())


def test_adalomo_by_hand_and_against_torch_s_adafactor() -> None:
    """First step (b = 0) of W = [[1, 1], [1, 1]], G = [[1, 2], [3, 6]] = [1, 3] x [1, 2]: G^2 has rank one, so V = G^2, U = 1
    everywhere, RMS(U) = RMS(W) = 1, and W1 = W - lr. Later steps: torch's Adafactor, whose rate is min(lr, 1/sqrt(t)) = lr here."""
    named = {MATRIX: torch.nn.Parameter(torch.ones(2, 2))}
    optimizer = build(named, KINDS["adalomo"])
    named[MATRIX].grad = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    optimizer.step()
    assert torch.allclose(named[MATRIX], torch.full((2, 2), 0.9), atol=1e-6)
    ours, theirs = parameters(), parameters()
    steps(ours, build(ours, KINDS["adalomo"]), range(5))
    steps(theirs, torch.optim.Adafactor(list(theirs.values()), lr=LR, weight_decay=0.0), range(5))
    for name in SHAPES:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5), name


LAYERS = {f"model.layers.{i}.mlp.up_proj.weight": (4, 4) for i in range(11)} | {
    "lm_head.weight": (8, 4),
    "model.norm.weight": (4,),
}


def test_badam_moves_the_active_block_only() -> None:
    """Two steps for each layer in the model's order (10 after 9), moments anew at each switch; the rest stays as it is."""
    named = parameters(LAYERS)
    optimizer: Any = build(named, KINDS["badam"])
    alone = parameters(LAYERS)
    for turn in range(12):
        name = f"model.layers.{turn % 11}.mlp.up_proj.weight"
        assert optimizer.active_names() == {name}
        before = {key: parameter.detach().clone() for key, parameter in named.items()}
        steps(named, optimizer, [2 * turn, 2 * turn + 1])
        assert {key for key in named if not torch.equal(named[key], before[key])} == {name}
        assert {id(key) for key, state in optimizer.state.items() if state} == {id(named[name])}
        steps({name: alone[name]}, torch.optim.AdamW([alone[name]], lr=LR, weight_decay=0), [2 * turn, 2 * turn + 1])
        assert torch.allclose(named[name], alone[name], atol=1e-6)


def test_badam_s_orders() -> None:
    def order(turns: int = 6, **settings: Any) -> list[int]:
        config = load("tunesmith.train.optimizers", "badam").Config(**settings)
        return [active_block(turn, 3, config) for turn in range(turns)]

    assert order() == [0, 1, 2, 0, 1, 2] and order(order="descending") == [2, 1, 0, 2, 1, 0]
    assert order(order="fixed", start=1) == [1] * 6 and order(start=2) == [2, 0, 1, 2, 0, 1]
    drawn = order(30, order="random")
    assert all(sorted(drawn[i : i + 3]) == [0, 1, 2] for i in range(0, 30, 3)) and drawn[:15] != drawn[15:]
    assert list(blocks_of(list(LAYERS), embeddings=True))[-2:] == ["model.layers.10", ""]
    with pytest.raises(ConfigError, match="start is 3, and there are 3 blocks"):
        order(start=3)
    with pytest.raises(ConfigError, match="none of the weights"):
        build(parameters({"lm_head.weight": (4, 4)}), KINDS["badam"])


@pytest.mark.parametrize("mask", ["adjacent", "scatter"])
def test_badam_s_share_of_a_matrix(mask: str) -> None:
    """A quarter of 24 entries moves, others after the switch; their moments are six numbers; embeddings stay."""
    named = parameters()
    optimizer = build(named, KINDS["badam-ratio"] | {"mask": mask})
    moved = []
    for turn in range(2):
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        steps(named, optimizer, [2 * turn, 2 * turn + 1])
        places = (named[MATRIX] != before[MATRIX]).view(-1).nonzero().view(-1).tolist()
        assert len(places) == 6 and optimizer.state[named[MATRIX]]["exp_avg"].shape == (6,)
        assert (places == list(range(places[0], places[0] + 6))) == (mask == "adjacent")
        assert torch.equal(named[EMBEDDING], before[EMBEDDING]) and not torch.equal(named[NORM], before[NORM])
        moved.append(places)
    assert moved[0] != moved[1]
    cover = torch.zeros(24)
    for seed in range(200):
        cover[chosen(seed, 24, 0.25, mask, torch.device("cpu"))] = 1
    assert cover.all(), "an entry is never learned"


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_kept_without_pickle(kind: str) -> None:
    """3 + 3 steps with the state written as JSON and plain tensors in between are 6 steps, bit for bit."""
    whole = parameters()
    steps(whole, build(whole, KINDS[kind]), range(6))
    first = parameters()
    optimizer = build(first, KINDS[kind])
    steps(first, optimizer, range(3))
    tensors, record = optimizer_state.dump(optimizer, first)
    second = {name: torch.nn.Parameter(parameter.detach().clone()) for name, parameter in first.items()}
    again = build(second, KINDS[kind])
    kept = {place: tensor.clone() for place, tensor in tensors.items()}
    optimizer_state.restore(again, second, kept, json.loads(json.dumps(record)))
    steps(second, again, range(3, 6))
    assert all(torch.equal(second[name], whole[name]) for name in SHAPES)


def test_what_each_keeps_for_a_matrix() -> None:
    """Numbers for 32 x 64 (m x n), rank 4: GaLore m r + 2 n r, APOLLO 2 n r + 1, mini 2 n + 1, Adam-mini m n + m, AdaLomo m + n."""
    m, n, r = 32, 64, 4
    promised = {
        "galore": m * r + 2 * n * r, "apollo": 2 * n * r + 1, "apollo-mini": 2 * n + 1, "adam-mini": m * n + m, "lomo": 0,
        "adalomo": m + n, "badam": 2 * m * n, "badam-ratio": 2 * m * n // 4,
    }  # fmt: skip
    for kind, numbers in promised.items():
        named = parameters({MATRIX: (m, n)})
        optimizer = build(named, KINDS[kind] | ({"rank": r} if kind in ("galore", "apollo") else {}))
        steps(named, optimizer, range(2))
        tensors, _ = optimizer_state.dump(optimizer, named)
        assert sum(tensor.numel() for tensor in tensors.values()) == numbers, kind


@pytest.mark.parametrize("family", FAMILIES)
def test_names_tell_the_vocabulary_s_matrices(family: str) -> None:
    """What the model itself calls its embeddings and its output layer, and nothing else; for families of other names too."""
    import transformers

    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**SMALL | settings | {"vocab_size": 32})
    with torch.device("meta"):
        check(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("name", ["GPTNeoXConfig", "GPT2Config", "BloomConfig", "MixtralConfig"])
def test_names_of_other_families(name: str) -> None:
    import transformers

    sizes = {key: value for key, value in SMALL.items() if key != "head_dim"} | {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "num_local_experts": 2,
        "vocab_size": 32,
    }
    with torch.device("meta"):
        check(transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**sizes)))


def check(model: Any) -> None:
    weights = [
        layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None
    ]
    for name, parameter in model.named_parameters():
        known = any(parameter is weight for weight in weights) or name.endswith("wpe.weight")
        assert of_vocabulary(name) == known, name
        assert is_matrix(name, parameter) == (parameter.ndim > 1 and not known), name
