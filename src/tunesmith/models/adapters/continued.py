"""Going on with an existing adapter: its own settings hold, and what was asked for beside them must not differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.config.errors import ConfigError
from tunesmith.models.adapters import chain
from tunesmith.models.adapters.config import AdapterConfig

C = TypeVar("C", bound=AdapterConfig)


def adopted(config: C, folder: Path, kind: str, its: Mapping[str, Any]) -> C:
    """``config`` with the settings of the adapter in ``folder``. ``kind``: peft's name of it; ``its``: the kind's own settings.

    Raises ConfigError when the adapter is of another kind, or for a setting that was given and differs.
    """
    found = chain.read_config(folder)
    if found.get("peft_type") != kind:
        raise ConfigError(
            f"method.start_from: {folder} is an adapter of kind {str(found.get('peft_type')).lower()}",
            hint=f"this method is {config.kind}; write method.kind to match the adapter",  # type: ignore[attr-defined]
        )
    modules = found.get("target_modules") or ()
    values = dict(its) | {
        "targets": (f"re:{modules}",) if isinstance(modules, str) else tuple(sorted(modules)),
        "exclude": _as_tuple(found.get("exclude_modules")),
        "layers": None,
        "modules_to_save": _as_tuple(found.get("modules_to_save")),
        "merge_first": tuple(str(path) for path in chain.merged_first(folder)),
    }
    for key in sorted(config.model_fields_set & values.keys()):
        given, own = getattr(config, key), values[key]
        if given is not None and (set(given) != set(own) if isinstance(own, tuple) else given != own):
            raise ConfigError(
                f"method.{key}: {_shown(given)} is asked for, the adapter to go on with ({folder}) has {_shown(own)}",
                hint=f"leave method.{key} out: the adapter's own settings hold; or learn a new one on top with merge_first",
            )
    return config.model_copy(update=values)


def _as_tuple(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    return (f"re:{value}",) if isinstance(value, str) else tuple(sorted(value))


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
