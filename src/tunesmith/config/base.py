"""The base of every config class: strict, frozen, documented. Machinery only; it knows no setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Config(BaseModel):
    """Immutable; an unknown key is an error; the docstring under a field is its help text everywhere."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
    shorthand: ClassVar[str | None] = None
    """The field that a plain text (or list) in place of the whole mapping stands for."""

    @model_validator(mode="before")
    @classmethod
    def _from_shorthand(cls, value: Any) -> Any:
        return {cls.shorthand: value} if cls.shorthand and isinstance(value, (str, list, tuple)) else value


def setting(
    default: Any = ..., *, zh: str, basic: bool = False, choices: Sequence[str] = (), label: tuple[str, str] | None = None,
    **constraints: Any,
) -> Any:  # fmt: skip
    """A documented setting: ``zh`` is its help in Chinese, ``basic`` puts it on the first screen of the page's form.

    ``label`` is what the page calls it (English, Chinese) where it is not known by its key. ``choices`` are shown where they cannot be part of the type (names found at run time); a validator must check them.
    ``constraints`` are pydantic's (``ge``, ``le``, ``min_length`` …). The English help is the docstring under the field.
    """
    extra: dict[str, Any] = {"zh": zh}
    if basic:
        extra["basic"] = True
    if label:
        extra["label"] = dict(zip(("en", "zh"), label, strict=True))
    if choices:
        extra["enum"] = list(choices)
    if callable(default) and not isinstance(default, type(...)):
        return Field(default_factory=default, json_schema_extra=extra, **constraints)
    return Field(default, json_schema_extra=extra, **constraints)
