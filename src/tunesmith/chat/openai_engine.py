"""An engine that asks an OpenAI-style server: ``URL#MODEL``, for example ``http://localhost:8000/v1#my-model`` (vLLM, llama-server, …).

The key comes from ``$OPENAI_API_KEY`` and is written nowhere; over plain http it goes to this machine only.
Protocol: https://platform.openai.com/docs/api-reference/chat (``POST /chat/completions``, server-sent events).
"""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.chat.base import Messages, NoDistributionError, Sampling
from tunesmith.chat.ollama_api import CONNECT_SECONDS, READ_SECONDS, error_text, is_loopback
from tunesmith.config.errors import ServerError

if TYPE_CHECKING:
    import httpx
    import numpy as np

KEY = "OPENAI_API_KEY"


class OpenAIEngine:
    """``model`` as the server at ``url`` has it, with its own template. ``/v1`` is added to an address without a path.

    The connection is opened at the first question. ``warning`` is what to show before: None for this machine and for https.
    """

    def __init__(self, url: str, model: str, *, name: str | None = None) -> None:
        import httpx

        parts = urllib.parse.urlsplit(url)
        self.url = url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
        self.model, self.name = model, name or f"{url}#{model}"
        here = is_loopback(self.url)
        encrypted = parts.scheme.lower() == "https"
        key = os.environ.get(KEY)
        self.warning = None
        if not here and not encrypted:
            self.warning = (
                f"{self.url} is another machine, and http is not encrypted: every question can be read on the way"
            )
            self.warning += f"; ${KEY} is not sent there" if key else ""
        self._sends_key = bool(key) and (here or encrypted)
        self._client = httpx.Client(
            timeout=httpx.Timeout(READ_SECONDS, connect=max(CONNECT_SECONDS, 0 if here else 10)),
            trust_env=not here,
            follow_redirects=False,
            headers={"Authorization": f"Bearer {key}"} if self._sends_key else {},
        )

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """The answer, piece by piece. Raises ServerError: no server, a refusal, or an answer that broke off."""
        import httpx

        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stream": True,
        }
        try:
            with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                if response.status_code >= 300:
                    text = response.read().decode("utf-8", "replace")
                    raise self._refused(response.status_code, text)
                yield from self._pieces(response)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Never: raises NoDistributionError."""
        raise NoDistributionError(
            f"{self.name} cannot tell the probabilities of every token: its interface gives only the most likely few, as text",
            hint="compare the model's files instead",
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _pieces(self, response: httpx.Response) -> Iterator[str]:
        if "text/event-stream" not in response.headers.get("content-type", ""):
            response.read()
            yield self._choice(self._json(response.text), "message")[0]
            return
        ended = False
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                ended = True
                break
            text, last = self._choice(self._json(data), "delta")
            ended = ended or last
            if text:
                yield text
        if not ended:
            raise ServerError(
                f"the answer of {self.model} at {self.url} broke off before its end",
                hint="see whether the server still runs, then ask again",
            )

    def _choice(self, found: Mapping[str, Any], part: str) -> tuple[str, bool]:
        """Text of the first choice, and whether the answer ends with it. An ``error`` inside a stream is an error."""
        if found.get("error"):
            raise self._refused(None, json.dumps(found))
        choices = found.get("choices") or []
        if not choices:
            return "", False
        text = (choices[0].get(part) or {}).get("content")
        return str(text or ""), choices[0].get("finish_reason") is not None

    def _json(self, text: str) -> Mapping[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServerError(
                f"what answers at {self.url} is no OpenAI-style server", hint="the address mostly ends in /v1: URL/v1#MODEL"
            )  # fmt: skip
        return found

    def _refused(self, status: int | None, text: str) -> ServerError:
        message = error_text(text)
        try:
            inner = json.loads(text).get("error")
            message = str(inner["message"]) if isinstance(inner, dict) and inner.get("message") else message
        except (ValueError, AttributeError):
            pass
        hint = "the server's log says more"
        if status in (401, 403):
            sent = "it was sent and refused" if self._sends_key else f"put it into the environment: {KEY}=…"
            hint = f"the server wants a key; {sent}"
        elif status == 404:
            hint = "is the model called so there, and does the address end in /v1? URL/v1#MODEL"
        code = "" if status is None else f" ({status})"
        return ServerError(f"{self.url} refused{code} while asking {self.model}: {message[:500]}", hint=hint)

    def _unreachable(self, error: Exception) -> ServerError:
        import httpx

        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL)):
            return ServerError(f"no server answers at {self.url}", hint="is it running, and is this its address?")
        if isinstance(error, httpx.TimeoutException):
            return ServerError(
                f"{self.url} did not answer in time while asking {self.model}", hint="the server's log says more"
            )
        return ServerError(
            f"the connection to {self.url} broke while asking {self.model} ({type(error).__name__})",
            hint="see whether the server still runs, then ask again",
        )
