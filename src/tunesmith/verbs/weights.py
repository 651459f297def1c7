"""Opening weights: a base as training begins with it, and a base with what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.models.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from tunesmith.models.changes import NewToken

ADAPTER, PART = "adapter_config.json", "trained_weights.json"


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds a peft adapter; else it holds weights learned in full."""
    return (folder / ADAPTER).is_file()


def is_part(folder: Path) -> bool:
    """Whether ``folder`` holds some weights of a model, which belong into its base."""
    return (folder / PART).is_file()


def open_begun(
    folder: Path, config: ModelConfig, *, dtype: torch.dtype, device: torch.device
) -> tuple[Any, tuple[NewToken, ...]]:
    """The base in ``folder`` as training begins with it, positions stretched and rows for new tokens; and these tokens.

    The same folder and config always give the same weights. Raises UserError.
    """
    from tunesmith.models.open import open_config, open_model
    from tunesmith.models.rope import check_stretched, forget_lengths, rope_changes
    from tunesmith.models.vocabulary import grow, tokenizer_with_tokens

    keys = None
    if config.rope is not None:
        text = open_config(folder, trust_remote_code=config.trust_remote_code).get_text_config()
        keys = rope_changes(text, config.rope)
    model = open_model(
        folder,
        dtype=dtype,
        device=device,
        trust_remote_code=config.trust_remote_code,
        changes=keys,
        quantize=config.quantize,
    )
    if config.rope is not None:
        check_stretched(model, config.rope)
    forget_lengths(model)
    tokens = tokenizer_with_tokens(folder, config)[1] if config.add_tokens or config.add_special_tokens else ()
    grow(model, tokens, config.new_token_init)
    return model, tokens


def open_learned(
    base: Path,
    learned: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    quantize: Any = None,
) -> Any:
    """The model that was learned: a complete folder as it is, else the base with the adapter or the weights of ``learned``.

    Raises UserError when the two do not belong together.
    """
    from tunesmith.models.changes import ROPE_KEYS, read_changes
    from tunesmith.models.open import open_model
    from tunesmith.models.rope import forget_lengths
    from tunesmith.models.trained import load_trained
    from tunesmith.models.vocabulary import fit

    how: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    if not is_adapter(learned) and not is_part(learned):
        model = open_model(learned, **how)
        forget_lengths(model)
        return model
    changes = read_changes(learned)
    model = open_model(
        base, **how, quantize=quantize, changes={k: v for k, v in changes.config.items() if k in ROPE_KEYS}
    )
    forget_lengths(model)
    fit(model, int(changes.config.get("vocab_size", 0)))
    if is_part(learned):
        return load_trained(model, learned)
    from tunesmith.models.adapters.chain import open_with_needed

    return open_with_needed(model, learned, fp32=False)
