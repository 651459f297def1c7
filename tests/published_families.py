"""Model families, written down by hand: their bos, eos and end of turn, as their published tokenizers have them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """``end`` is the text that ends an assistant's turn ("" when the family has none); ``adds_bos``: its tokenizer puts BOS
    before every text by itself; ``more``: special tokens that templates build from pieces; ``plain``: looks special, is not."""

    bos: str
    eos: str
    end: str
    adds_bos: bool = False
    sentencepiece: bool = False
    more: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|observation|>")
_EOT, _IM_END, _TEXT_END = "<|eot_id|>", "<|im_end|>", "<|endoftext|>"
_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
_INST = ("[INST]", "[/INST]")

FAMILIES: dict[str, Family] = {
    "cohere": Family("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", adds_bos=True),
    "chatml": Family("", _IM_END, _IM_END, more=("<|im_start|>", _TEXT_END)),
    "chatml-bos": Family("<s>", _IM_END, _IM_END, adds_bos=True, sentencepiece=True),
    "chatml-eos": Family(_TEXT_END, _TEXT_END, _IM_END),
    "smollm": Family("<|im_start|>", _IM_END, _IM_END),
    "hermes": Family("<|begin_of_text|>", _IM_END, _IM_END, adds_bos=True),
    "lfm": Family("<|startoftext|>", _IM_END, _IM_END, adds_bos=True),
    "internlm2": Family("<s>", "</s>", _IM_END, adds_bos=True, sentencepiece=True),
    "llama2": Family("<s>", "</s>", "</s>", adds_bos=True, sentencepiece=True, plain=_INST),
    "zephyr": Family("<s>", "</s>", "</s>", adds_bos=True, sentencepiece=True, plain=_ROLES),
    "llama3": Family("<|begin_of_text|>", _EOT, _EOT, adds_bos=True, more=("<|end_of_text|>", "<|eom_id|>")),
    "llama4": Family("<|begin_of_text|>", "<|eot|>", "<|eot|>", adds_bos=True, more=("<|eom|>",)),
    "tulu3": Family("<|begin_of_text|>", "<|end_of_text|>", "<|end_of_text|>", adds_bos=True, plain=_ROLES),
    "mistral": Family("<s>", "</s>", "</s>", adds_bos=True, sentencepiece=True),
    "mistral-tekken": Family("<s>", "</s>", "</s>", adds_bos=True),
    "gemma": Family("<bos>", "<eos>", "<end_of_turn>", adds_bos=True, sentencepiece=True),
    "gemma4": Family("<bos>", "<eos>", "<turn|>", adds_bos=True, sentencepiece=True, more=("<|tool_response>",)),
    "phi3": Family("<s>", _TEXT_END, "<|end|>", sentencepiece=True, more=_ROLES),
    "phi4-mini": Family(_TEXT_END, _TEXT_END, "<|end|>", more=_ROLES),
    "phi4": Family(_TEXT_END, _IM_END, _IM_END),
    "deepseek": Family(*_DEEPSEEK, _DEEPSEEK[1], adds_bos=True),
    "deepseek-coder": Family(_DEEPSEEK[0], "<|EOT|>", "<|EOT|>", adds_bos=True),
    "glm": Family("", _TEXT_END, "", more=_ROLES),
    "granite": Family("<|end_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),
    "granite-code": Family(_TEXT_END, _TEXT_END, ""),
    "gpt-oss": Family("<|startoftext|>", "<|return|>", "<|return|>", more=("<|call|>",)),
    "exaone": Family("[BOS]", "[|endofturn|]", "[|endofturn|]", more=("[|system|]", "[|user|]", "[|assistant|]")),
    "falcon2": Family("", _TEXT_END, ""),
    "nemotron-mini": Family("<s>", "</s>", "<extra_id_1>", sentencepiece=True),
    "olmo2": Family(_TEXT_END, _TEXT_END, _TEXT_END, plain=_ROLES),
    "openchat": Family("<s>", "<|end_of_turn|>", "<|end_of_turn|>", adds_bos=True, sentencepiece=True),
    "muse": Family("<|begin_of_text|>", "<|eot|>", "<|eot|>", adds_bos=True),
    "utterance": Family("<|im_start|>", "<end_of_utterance>", "<end_of_utterance>"),
    "utterance3": Family("<|begin_of_text|>", "<end_of_utterance>", "<end_of_utterance>", adds_bos=True),
}

_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"mistral-common/(v3-tekken|v11|v13)", "mistral-tekken"),
    (r"mistral-common/", "mistral"),
    (r"trl/cohere|ollama/(aya|command)", "cohere"),
    (r"ollama/(cogito:3b|dolphin-llama3|firefunction|llama-guard3|llama3|nemotron:|rnj)|trl/llama3", "llama3"),
    (r"ollama/llama4", "llama4"),
    (r"ollama/hermes3", "hermes"),
    (r"trl/lfm2", "lfm"),
    (r"ollama/internlm2", "internlm2"),
    (r"ollama/(dolphin-mixtral|nous-hermes2)", "chatml-bos"),
    (r"ollama/(dbrx|dolphin-phi|stable-code)", "chatml-eos"),
    (r"ollama/smollm2", "smollm"),
    (r"ollama/(cogito|llava:34b|marco|opencoder|qw|sailor2|smallthinker|yi)|trl/(qwen|nemotron)", "chatml"),
    (r"ollama/deepseek-coder:", "deepseek-coder"),
    (r"ollama/(deep|r1-)|trl/deepseek", "deepseek"),
    (r"ollama/(devstral|mistral-large|mistral-small)", "mistral-tekken"),
    (r"ollama/(mistral|mixtral|llava:7b)|trl/llava", "mistral"),
    (r"ollama/exaone", "exaone"),
    (r"ollama/falcon2", "falcon2"),
    (r"trl/(gemma4|diffusion_gemma)", "gemma4"),
    (r"ollama/(gemma|shieldgemma)|trl/gemma", "gemma"),
    (r"ollama/glm|trl/glm", "glm"),
    (r"ollama/granite-code", "granite-code"),
    (r"ollama/granite", "granite"),
    (r"ollama/llama2", "llama2"),
    (r"ollama/(llama-pro|tinyllama)", "zephyr"),
    (r"ollama/(llava-phi3|nuextract|phi3)|trl/phi3", "phi3"),
    (r"ollama/phi4-mini", "phi4-mini"),
    (r"ollama/phi4", "phi4"),
    (r"ollama/nemotron-mini", "nemotron-mini"),
    (r"ollama/olmo2", "olmo2"),
    (r"ollama/openchat", "openchat"),
    (r"ollama/tulu3", "tulu3"),
    (r"trl/gptoss", "gpt-oss"),
    (r"trl/muse", "muse"),
    (r"trl/smolvlm", "utterance"),
    (r"trl/idefics3", "utterance3"),
)


def family_of(name: str) -> str:
    """The family of a published template, by its name. Raises LookupError for one that this table has not met."""
    for pattern, family in _BY_NAME:
        if re.match(pattern, name):
            return family
    raise LookupError(f"tests/published_families.py knows no family for {name}: add a row")
