"""Which places for models answer from this machine, asked all at once. For ``tunesmith doctor``."""

from __future__ import annotations

from dataclasses import dataclass

from . import huggingface, modelscope, net, pypi


@dataclass(frozen=True)
class Place:
    """A place that models come from; ``note`` says in words that it answers, or why it does not."""

    name: str
    address: str
    answers: bool
    note: str


def reachable() -> list[Place]:
    """Hugging Face, ModelScope and the package index that pip uses, in this order. Takes some seconds at most."""
    places = [
        (huggingface.NAME, huggingface.endpoint()),
        (modelscope.NAME, modelscope.endpoint()),
        ("Python package index", pypi.index()),
    ]
    remote = [address for _, address in places if address.startswith(("http://", "https://"))]
    silences = dict(zip(remote, net.why_silent_each(remote), strict=True))
    found: list[Place] = []
    for name, address in places:
        if address not in silences:
            found.append(Place(name, address, True, "it is a folder on this machine"))
            continue
        silence = silences[address]
        note = "answers" if silence is None else f"cannot be reached: {silence}"
        found.append(Place(name, net.plain(address), silence is None, note))
    return found
