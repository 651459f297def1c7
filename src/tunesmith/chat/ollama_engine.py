"""An engine that asks a running Ollama server. It knows nothing of how the model got there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tunesmith.chat import ollama_api
from tunesmith.chat.base import Messages, NoDistributionError, Sampling

if TYPE_CHECKING:
    import numpy as np


class OllamaEngine:
    """``model`` as the server at ``url`` (None: ``$OLLAMA_HOST``) has it, with its own template, system prompt and stops.

    What `Sampling` says replaces the model's own parameters, and Ollama's other sampling defaults (repeat penalty, top-k,
    min-p) are switched off, so that answers can be compared with those of other engines. The connection is opened at the
    first question. ``think``: whether the model is to think first; None: the server decides. What it thinks comes between <think> tags,
    as models write it. Raises UserError for an impossible name or address.
    """

    def __init__(self, model: str, url: str | None = None, *, think: bool | None = None) -> None:
        import ollama

        self.model, self.think = ollama_api.check_name(model), think
        self.url = ollama_api.address(url)
        self.name = f"ollama:{model}"
        self._client = ollama.Client(host=self.url, **ollama_api.client_options(self.url))

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """The answer, piece by piece. Raises ServerError: no server, no such model, or an answer that broke off."""
        import httpx
        import ollama

        doing = f"asking {self.model}"
        ended = thinks = False
        try:
            parts = self._client.chat(
                model=self.model,
                messages=list(messages),
                stream=True,
                options=request_options(sampling),
                think=self.think,
            )
            for part in parts:
                ended = bool(part.done)
                if part.message.thinking:
                    yield part.message.thinking if thinks else f"<think>\n{part.message.thinking}"
                    thinks = True
                if part.message.content:
                    yield f"\n</think>\n\n{part.message.content}" if thinks else part.message.content
                    thinks = False
        except ollama.ResponseError as error:
            raise ollama_api.refused(doing, error.status_code, error.error) from error
        except (httpx.TransportError, ConnectionError) as error:
            raise ollama_api.unreachable(self.url, error, doing) from error
        except ValueError as error:  # not JSON, or not the fields of a chat
            raise ollama_api.not_ollama(self.url) from error
        if not ended:
            raise ollama_api.refused(doing, None, "the answer broke off before its end")

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Never: raises NoDistributionError."""
        raise NoDistributionError(
            f"{self.name} cannot tell the probabilities of every token: Ollama's API gives only the most likely few, as text",
            hint="compare the GGUF itself instead: llama.cpp runs the same file and tells them all",
        )

    def close(self) -> None:
        """Close the connection. The server keeps or drops the model by its own rule (5 minutes unless set otherwise)."""
        self._client.close()


def request_options(sampling: Sampling) -> dict[str, float | int]:
    """The ``options`` of a request that asks for `Sampling` and nothing else."""
    return {
        "num_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
