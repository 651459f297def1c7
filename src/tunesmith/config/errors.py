"""The exception tree. Every mistake a person can make ends in one ``UserError`` with a hint, never in a traceback."""

from __future__ import annotations


class TunesmithError(Exception):
    """Root of every error this package raises on purpose."""


class UserError(TunesmithError, ValueError):
    """Something the person asked for cannot be done as written. The command line prints it and exits with code 2.

    ``message`` says what was found and where (file, key, row); ``hint`` says how to mend it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class ConfigError(UserError):
    """A config file, override or setting that does not say something valid."""


class ReferenceNotFoundError(UserError, FileNotFoundError):
    """A model, run or data reference that points to nothing, with the places that were tried."""


class DataError(UserError):
    """A data file or row that cannot be read as training data."""


class RenderError(UserError):
    """A conversation that the model's chat template cannot render, or not exactly."""


class TrainingError(UserError):
    """Training stopped because going on would waste time (for example a non-finite loss)."""


class ExportError(UserError):
    """An export that cannot be done, or whose result failed its check."""


class ServerError(UserError, ConnectionError):
    """A server (Ollama, an OpenAI-style endpoint) that did not do what was asked."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: a program asks for what a person asks for with Ctrl-C."""
