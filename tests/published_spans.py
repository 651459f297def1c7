"""What is learned of a rendered conversation, told by rules written by hand: an oracle that knows nothing of Tunesmith's code.

A rule says, for a family (or one template), what text opens the assistant's turn in the prompt (``opens``, a regular
expression) and what text ends it (``ends``). Learned is everything from the end of the opening, the first after the
words of the message before, up to and with the first end after the last of the turn's own words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from published import Published
from published_cases import TOOL_WORDS, Case, thought_marks


@dataclass(frozen=True)
class Rule:
    """``ends`` "" = nothing ends a turn: its words alone are learned. An end that may be missing at the very end of the text is
    written as ``(?:…|\\Z)``. ``free``: what may stand after the opening and be learned or not, because the prompt holds it in one
    mode of the model and the answer in another (an empty thinking block); ``after``: the same after the end."""

    opens: str
    ends: str
    free: str = ""
    after: str = ""


def _token(*texts: str) -> str:
    return "|".join(map(re.escape, texts))


_CHATML = Rule(_token("<|im_start|>assistant\n"), _token("<|im_end|>"))
_THINK = Rule(_CHATML.opens, _CHATML.ends, free=r"(?:<think>\s*(?:</think>\s*)?)?")
_LLAMA3 = Rule(_token("<|start_header_id|>assistant<|end_header_id|>\n\n"), _token("<|eot_id|>", "<|eom_id|>"))
_INST = Rule(_token("[/INST]", "[/TOOL_RESULTS]"), _token("</s>"))
_DEEPSEEK = Rule(
    "<｜Assistant｜>|<｜tool▁outputs▁end｜>|<｜tool▁output▁end｜>(?:<｜tool▁outputs▁end｜>)?",
    _token("<｜end▁of▁sentence｜>"),
    free=r"(?:<think>\n|</think>)?",
)
_PHI3 = Rule(_token("<|assistant|>\n"), _token("<|end|>"))
_NEXT_ROLE = rf"(?:{_token('<|user|>', '<|observation|>', '<|system|>', '<|assistant|>')}|\Z)"

FAMILY_RULES: dict[str, Rule] = {
    "cohere": Rule(_token("<|CHATBOT_TOKEN|>"), _token("<|END_OF_TURN_TOKEN|>"), free=r"(?:<\|START_RESPONSE\|>)?"),
    **dict.fromkeys(("chatml", "chatml-bos", "chatml-eos", "smollm", "hermes", "lfm", "internlm2"), _CHATML),
    "llama3": _LLAMA3,
    "llama4": Rule(_token("<|header_start|>assistant<|header_end|>\n\n"), _token("<|eot|>", "<|eom|>")),
    **dict.fromkeys(("llama2", "mistral", "mistral-tekken"), _INST),
    "zephyr": Rule(_token("<|assistant|>\n"), _token("</s>")),
    "tulu3": Rule(_token("<|assistant|>\n"), _token("<|end_of_text|>")),
    "olmo2": Rule(_token("<|assistant|>\n"), _token("<|endoftext|>")),
    "gemma": Rule(_token("<start_of_turn>model\n"), _token("<end_of_turn>")),
    "gemma4": Rule(
        _token("<|turn>model\n", "<tool_response|>"),
        r"<turn\|>|<tool_call\|>(?!<\|tool_call>)(?:<turn\|>)?",
        free=r"(?:<\|turn>model\n)?",
        after=r"(?:<\|tool_response>)?",
    ),
    "phi3": _PHI3,
    "phi4-mini": Rule(_token("<|assistant|>"), _token("<|end|>")),
    "phi4": Rule(_token("<|im_start|>assistant<|im_sep|>"), _token("<|im_end|>")),
    "deepseek": _DEEPSEEK,
    "deepseek-coder": Rule(_token("### Response:\n"), _token("<|EOT|>")),
    "glm": Rule(_token("<|assistant|>"), _NEXT_ROLE),
    "granite": Rule(_token("<|start_of_role|>assistant<|end_of_role|>"), _token("<|end_of_text|>")),
    "granite-code": Rule(_token("Answer:\n"), "", after=r"\s*"),
    "gpt-oss": Rule(_token("<|start|>assistant"), _token("<|return|>", "<|end|>", "<|call|>")),
    "exaone": Rule(_token("[|assistant|]"), _token("[|endofturn|]"), free=r"(?:<thought>\n)?"),
    "falcon2": Rule(_token("Falcon:\n"), "", after=r"\s*"),
    "nemotron-mini": Rule(_token("<extra_id_1>Assistant\n"), _token("<extra_id_1>")),
    "openchat": Rule(_token("GPT4 Correct Assistant:"), _token("<|end_of_turn|>")),
    "muse": Rule(_token("<|start|>assistant"), _token("<|eot|>", "<|eom|>")),
    **dict.fromkeys(("utterance", "utterance3"), Rule(_token("Assistant:"), _token("<end_of_utterance>"))),
}
TEMPLATE_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "trl/qwen3_5_think", "trl/qwen3_6", "trl/qwen3_8", "ollama/qwen3-next:80b", "ollama/qwq:32b#2", "ollama/qwq:32b#3",
            "trl/qwen3_5_nothink", "trl/nemotron_3_nano", "trl/nemotron_3_super", "trl/nemotron_3_ultra", "trl/nemotron_3_5_lightning",
        ),
        _THINK,
    ),
    "ollama/qwen:0.5b": Rule(_CHATML.opens, rf"(?:{_CHATML.ends}|\Z)"),
    "ollama/rnj-1:latest": Rule(_token("<|start_header_id|>assistant<|end_header_id|>\n"), _LLAMA3.ends),
    "ollama/granite3.2-vision:2b": Rule(_token("<|assistant|>\n"), _token("<|end_of_text|>")),
    "ollama/deepseek-coder-v2:16b": Rule(_token("Assistant:"), _DEEPSEEK.ends),
}  # fmt: skip


def rule_for(published: Published) -> Rule:
    """The rule of a template. Raises KeyError for a family without one."""
    return TEMPLATE_RULES.get(published.name) or FAMILY_RULES[published.family]


@dataclass(frozen=True)
class Turn:
    """Characters ``sure`` to ``end`` of an assistant's turn are learned; from ``start`` and up to ``far`` others may be."""

    start: int
    sure: int
    end: int
    far: int


def lost_words(case: Case, text: str) -> list[str]:
    """What of the conversation is missing in ``text``: "role: word", "tools". What was only thought does not count."""
    lost = ["tools"] if case.chat.tools and TOOL_WORDS not in text else []
    for message, marks in zip(case.chat.messages, case.marks):
        lost += [f"{message.role}: {mark}" for mark in marks if mark not in text]
    return lost


def expected_turns(published: Published, case: Case, text: str) -> list[Turn]:
    """What is learned when all assistant turns are. Raises LookupError when a turn is not in the text as the rules have it."""
    rule = rule_for(published)
    turns: list[Turn] = []
    floor = 0
    for message, marks in zip(case.chat.messages, case.marks):
        if message.role == "assistant":
            turn = _turn(rule, [*marks, *thought_marks(message), message.content.strip()], text, floor)
            turns.append(turn)
            floor = turn.end
        elif marks and message.role != "system":  # a system prompt may be moved to a later turn
            floor = max(floor, text.rindex(marks[-1]) + len(marks[-1]))
    return turns


def _turn(rule: Rule, marks: list[str], text: str, floor: int) -> Turn:
    opening = re.compile(rule.opens).search(text, floor)
    if opening is None:
        raise LookupError(f"nothing opens the turn after {text[floor - 40 : floor]!r}")
    start = opening.end()
    words = [text.find(mark, start) + len(mark) for mark in marks if mark and mark in text[start:]]
    free = re.compile(rule.free).match(text, start)
    last = max(words, default=start)
    closing = re.compile(rule.ends).search(text, last)
    if closing is None:
        raise LookupError(f"nothing ends the turn after {text[last - 40 : last]!r}")
    after = re.compile(rule.after).match(text, closing.end())
    return Turn(start, _end(free, start), closing.end(), _end(after, closing.end()))


def _end(found: re.Match[str] | None, otherwise: int) -> int:
    return found.end() if found else otherwise
