"""Which layers of a model get an adapter: names, patterns and layer numbers -> what peft is told.

Every name and pattern must match something: a typo is an error that names what there is, never a layer left out silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.config.errors import ConfigError
from tunesmith.config.plugins import suggestion
from tunesmith.models.adapters.config import AdapterConfig, pattern_of
from tunesmith.models.adapters.mixtures import is_router


def target_modules(model: Any, config: AdapterConfig) -> list[str]:
    """The names or full names of layers that peft is told. Raises ConfigError when a name, a pattern or a layer number fits
    nothing."""
    able = adaptable(model)
    if config.targets == ("all",):
        head, fused = model.get_output_embeddings(), read_as_experts(model)
        linear = {n: m for n, m in able.items() if m is not head and not hasattr(m, "num_embeddings")}
        chosen = [n for n in linear if n.rpartition(".")[2] not in fused]
        chosen = [name for name in chosen if not is_router(model, name)]
    else:
        chosen = _matching(config.targets, able, "method.targets", model)
    left_out = set(_matching(config.exclude, able, "method.exclude", model))
    wanted = layer_numbers(model, config.layers)
    names = [n for n in chosen if n not in left_out and (wanted is None or layer_of(n) in wanted)]
    if not names and config.targets:
        raise ConfigError(
            "method.targets: exclude and layers leave no layer for an adapter",
            hint=f"targets alone would be {len(chosen)} layers, for example {chosen[0] if chosen else 'none'}",
        )
    plain = config.targets != ("all",) and not (config.exclude or wanted or any(map(pattern_of, config.targets)))
    return list(config.targets) if plain else names


def read_as_experts(model: Any) -> frozenset[str]:
    """Names that peft takes for the fused experts of this family, as they were called before transformers 5 fused them:
    an adapter on another layer of such a name (a shared expert) could not be loaded again."""
    from peft.utils import transformers_weight_conversion as conversion

    families = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    mapping = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return frozenset(mapping.get(families.get(getattr(model.config, "model_type", None)), ()))


def expert_parameters(model: Any, config: AdapterConfig) -> list[str]:
    """Names of the 3D parameters that hold all experts of a layer at once. Raises ConfigError when there are none."""
    wanted = layer_numbers(model, config.layers)
    found = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and "expert" in name and (wanted is None or layer_of(name) in wanted)
    ]
    if not found:
        raise ConfigError(
            "method.experts: this model has no experts in fused 3D weights",
            hint="only mixture-of-experts models have them; experts that are linear layers are named in method.targets",
        )
    if wanted is not None:
        return found
    return sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in found})


def saved_modules(model: Any, names: Sequence[str]) -> tuple[list[str] | None, bool]:
    """peft's ``modules_to_save`` and ``ensure_weight_tying``. Raises ConfigError for a name that no module has."""
    if not names:
        return None, False
    modules = {name: module for name, module in model.named_modules() if name}
    called = {
        "embeddings": next((n for n, m in modules.items() if m is model.get_input_embeddings()), None),
        "head": next((n for n, m in modules.items() if m is model.get_output_embeddings()), None),
    }
    tied = is_tied(model)
    found: dict[str, None] = {}
    for name in names:
        end = called.get(name)
        hits = [end] if end else [n for n in modules if fits(n, name)]
        if not hits:
            known = sorted({n.rpartition(".")[2] for n in modules if not n.rpartition(".")[2].isdigit()})
            raise ConfigError(
                f"method.modules_to_save: no module of this model is called {name!r}",
                hint=suggestion(name, ["embeddings", "head", *known]),
            )
        for (
            full
        ) in hits:  # peft takes any module whose name ends so: "norm" would be every layer norm, a full name is one
            if full in called.values():
                stored = called["embeddings"] if tied else None  # one weight, under the name it is stored by
                found[(stored or full).rpartition(".")[2]] = None
            else:
                found[full] = None
    return list(found), tied and str(called["embeddings"]).rpartition(".")[2] in found


def checked_pattern(model: Any, pattern: dict[str, Any], key: str) -> dict[str, Any]:
    """``pattern`` (name or regular expression -> value), every entry of which fits a layer. Raises ConfigError."""
    able = adaptable(model)
    for text in pattern:
        try:
            hits = any(re.match(rf"(.*\.)?({text})$", name) for name in able)
        except re.error as error:
            raise ConfigError(f"{key}: {text!r} is not a regular expression ({error})") from error
        if not hits:
            raise ConfigError(f"{key}: {text!r}: no layer of this model is called so", hint=_known(text, able))
    return dict(pattern)


def adapt(model: Any, peft_config: Any, base_name: str) -> Any:
    """``model`` with fresh adapters (fp32). Raises ConfigError for what peft cannot put an adapter on."""
    from peft import get_peft_model

    try:
        adapted = get_peft_model(model, peft_config, autocast_adapter_dtype=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        linear = sorted({name.rpartition(".")[2] for name in adaptable(model)})
        raise ConfigError(
            f"method: {str(error).splitlines()[0]}", hint=f"the layers of this model: {', '.join(linear)}"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = base_name
    if getattr(peft_config, "ensure_weight_tying", False):
        ends = (adapted.get_base_model().get_input_embeddings(), adapted.get_base_model().get_output_embeddings())
        if not all(hasattr(end, "modules_to_save") for end in ends):
            raise ConfigError(
                "method.modules_to_save: peft cannot learn the embeddings of this family and keep the output layer tied to them",
                hint="leave them out of modules_to_save",
            )
    return adapted


def is_tied(model: Any) -> bool:
    """Whether the output layer and the input embeddings are one weight."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is getattr(embeddings, "weight", None)


def adaptable(model: Any) -> dict[str, Any]:
    """Linear layers (quantized ones too) and embeddings by name, in the model's order. Routers of experts are none."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, kinds) or (hasattr(module, "in_features") and hasattr(module, "out_features")))
        and "Router" not in type(module).__name__
    }


def fits(name: str, target: str) -> bool:
    """peft's rule: the whole name, or its end after a dot."""
    return name == target or name.endswith(f".{target}")


def layer_of(name: str) -> int | None:
    """The number of the decoder layer a module or parameter lies in: the first number in its name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def layer_numbers(model: Any, layers: Sequence[int] | None) -> set[int] | None:
    """``layers`` counted from the start. Raises ConfigError for one that the model does not have."""
    if layers is None:
        return None
    count = model.config.get_text_config().num_hidden_layers
    for layer in layers:
        if not -count <= layer < count:
            raise ConfigError(
                f"method.layers: there is no layer {layer}", hint=f"this model has {count}: 0 to {count - 1}, or -1 to -{count}"
            )  # fmt: skip
    return {layer % count for layer in layers}


def _matching(texts: Iterable[str], able: dict[str, Any], key: str, model: Any) -> list[str]:
    """The adaptable layers that any of ``texts`` means. Raises ConfigError for a text that means none."""
    fused = read_as_experts(model)
    found: dict[str, None] = {}
    for text in texts:
        pattern = pattern_of(text)

        def meant(name: str, pattern: str | None = pattern, text: str = text) -> bool:
            return re.fullmatch(pattern, name) is not None if pattern is not None else fits(name, text)

        if pattern is None and text.rpartition(".")[2] in fused:
            raise ConfigError(
                f"{key}: in this family {text} means the experts, which are one fused weight",
                hint="set method.experts: true for adapters on them, and leave the name out",
            )
        hits = [name for name in able if meant(name) and name.rpartition(".")[2] not in fused]
        if not hits:
            other = next((name for name, _ in model.named_modules() if name and meant(name)), None)
            what = f"{other} is no linear layer" if other else "no layer of this model is called so"
            raise ConfigError(f"{key}: {text!r}: {what}", hint=_known(text, able))
        found |= dict.fromkeys(hits)
    return [name for name in able if name in found]


def _known(text: str, able: dict[str, Any]) -> str:
    names = sorted({name.rpartition(".")[2] for name in able})
    near = suggestion(text.rpartition(".")[2], names) if pattern_of(text) is None else ""
    listed = f"its layers: {', '.join(names)}; whole names look like {max(able, key=len)}"
    return f"{near} {listed}" if near.startswith("did") else listed
