"""Starting values of A and B taken from the weight itself, which is then left with the rest: W = W' + s · B₀ A₀.

PiSSA (Meng et al., 2024, arXiv:2404.02948): the r largest singular directions; its fast form by randomized subspace
iteration. OLoRA (Büyükakyüz, 2024, arXiv:2406.01775): the first r columns of W = QR. Since the base changes, A₀ and B₀ are
kept: with them the learned adapter is the plain one of rank 2r on the untouched base, s (B A - B₀ A₀), and a resumed run finds
W' again, whatever a decomposition gives on another machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ConfigError

if TYPE_CHECKING:
    import torch

Factors = dict[str, "torch.Tensor"]
"""A₀ and B₀ (fp32, on the CPU) by the names of the parameters that start from them."""


def takes_from_base(init: str) -> bool:
    """Whether this start changes the base's own weights."""
    return init.startswith(("pissa", "olora"))


def start(model: Any, init: str, saved: Factors | None) -> Factors:
    """Set A and B of every adapted layer of the peft ``model`` to A₀ and B₀ and take s · B₀ A₀ from its weight.

    ``saved``: the factors of the run that is resumed, else they are computed. Returns them. Raises ConfigError for layers
    that cannot give them.
    """
    import torch
    from peft.tuners.lora import Linear, LoraLayer

    factors: Factors = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            base = module.get_base_layer()
            if not isinstance(module, Linear) or base.weight.dtype not in (
                torch.float32,
                torch.bfloat16,
                torch.float16,
            ):
                raise ConfigError(
                    f"method.init: {init} needs the numbers of the weight itself, and {name.removeprefix('base_model.model.')} is quantized or no linear layer",
                    hint="leave model.quantize out, or take init: default",
                )
            names = [f"{name}.lora_{letter}.default.weight" for letter in "AB"]
            weight = base.weight.detach().float()
            weight = weight.T if module.fan_in_fan_out else weight
            rank, scale = module.r["default"], module.scaling["default"]
            if saved is None:
                a, b = factors_of(weight, rank, scale, init, name.removeprefix("base_model.model."))
            else:
                a, b = (saved[one].to(weight.device) for one in names)
            rest = weight - scale * (b @ a)
            base.weight.data = (rest.T if module.fan_in_fan_out else rest).to(base.weight.dtype).contiguous()
            module.lora_A["default"].weight.data = a.contiguous()
            module.lora_B["default"].weight.data = b.contiguous()
            factors |= {one: value.detach().cpu().clone() for one, value in zip(names, (a, b))}
    return factors


def factors_of(
    weight: torch.Tensor, rank: int, scale: float, init: str, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A₀ [rank, in] and B₀ [out, rank] of a ``weight`` [out, in] in fp32. Raises ConfigError when the rank is too large."""
    import torch

    if rank > min(weight.shape):
        raise ConfigError(
            f"method.rank: {name} is {list(weight.shape)}, so {init} finds no {rank} directions in it",
            hint=f"the rank may be at most {min(weight.shape)} there; rank_pattern sets it for single layers",
        )
    if init == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    if init == "pissa":
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        u, s, v = u[:, :rank], s[:rank], v[:rank]
    else:
        u, s, columns = torch.svd_lowrank(weight, rank, niter=int(init.rpartition("_")[2]))
        v = columns.T
    root = (s / scale).sqrt()
    return root[:, None] * v, u * root


def plain(tensors: dict[str, torch.Tensor], factors: Factors) -> dict[str, torch.Tensor]:
    """The adapter of the untouched base: A over A₀, B beside -B₀. ``tensors``: A and B by parameter name."""
    import torch

    found = dict(tensors)
    for name, first in factors.items():
        one = tensors[name].detach()
        other = first.to(one.device, one.dtype)
        found[name] = torch.cat([one, other]) if ".lora_A." in name else torch.cat([one, -other], dim=1)
    return found


def halves(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Factors]:
    """What ``plain`` was made from, bit for bit: the learned values, and A₀ and B₀. By any names with lora_A and lora_B."""
    values, factors = dict(tensors), {}
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            values[name], factors[name] = (part.clone() for part in tensor.chunk(2))
        elif ".lora_B." in name:
            first, second = tensor.chunk(2, dim=1)
            values[name], factors[name] = first.clone(), -second
    return values, factors
