"""An example of one kind for a stage that learns from another: only where nothing has to be made up or quietly lost."""

from __future__ import annotations

from tunesmith.config.errors import DataError
from tunesmith.data.example import KINDS, Chat, Example, Feedback, Message, Preference, Prompt, Text
from tunesmith.data.thinking import without_empty_block

_MENDS = {
    ("preference", "chat"): "the stages dpo and reward learn from pairs; to learn the chosen answers alone, map the "
    'columns: {"prompt": …, "response": "chosen"} with format alpaca when they are texts, {"messages": "chosen"} with openai '
    "when they are whole conversations",
    ("prompt", "chat"): "prompts are for ppo and grpo; when the right answers are to be learned, map their column: "
    '{"prompt": …, "response": …} (alpaca)',
    ("text", "chat"): "the stage pretrain learns from plain text; for conversations, map the columns of question and answer",
    ("chat", "text"): "the stage sft learns conversations (data.learn: everything learns the questions too); for plain text, "
    'name the format text and its column: {"text": …}',
    ("chat", "preference"): "pairs need a better and a worse answer: `chosen` and `rejected`",
    ("chat", "feedback"): "feedback needs a verdict: map its column, {\"kto_tag\": …}",
    ("preference", "feedback"): "write each pair as two rows, the chosen answer with label true, the rejected one with false",
    ("feedback", "preference"): "pairs need two answers to one prompt; the stage kto learns from single answers",
}  # fmt: skip


def adapt(example: Example, kind: str) -> Example:
    """``example`` as one of ``KINDS``: itself when it is, else what can be had without loss.

    Feedback found good -> its chat; chat, pair, feedback -> its prompt (the last answer of a chat, when it is a text, becomes the
    reference); text -> a prompt asked by the user, and back, when there is nothing but the text. Raises DataError for the rest.
    """
    wanted = KINDS[kind]
    if isinstance(example, wanted):
        return example
    if wanted is Chat and isinstance(example, Feedback):
        return _good_chat(example)
    if wanted is Prompt:
        return _prompt(example)
    if wanted is Text and isinstance(example, Prompt):
        return _text(example)
    raise refusal(example, kind)


def refusal(example: Example, kind: str) -> DataError:
    """The error for an example that cannot be of ``kind``."""
    own = kind_of(example)
    return DataError(
        f"{example.origin}: this row is a {own} example, the stage learns from {kind} examples",
        hint=_MENDS.get((own, kind), f"take a set of {kind} examples, or map other columns"),
    )


def kind_of(example: Example) -> str:
    """The name of its kind in ``KINDS``."""
    return next(name for name, kind in KINDS.items() if isinstance(example, kind))


def _good_chat(example: Feedback) -> Chat:
    if example.good:
        return example.chat
    raise DataError(
        f"{example.origin}: this answer was found bad, and the stage would learn it",
        hint="the stage kto learns from bad answers too; data.skip_bad=true leaves them out, counted and named",
    )


def _prompt(example: Example) -> Prompt:
    if isinstance(example, Feedback):
        prompt = _prompt(example.chat)
        if example.good:
            return prompt
        return Prompt(prompt.messages, None, None, prompt.tools, prompt.media, prompt.origin)
    if isinstance(example, Preference):
        return Prompt(example.prompt, None, None, example.tools, example.media, example.origin)
    if isinstance(example, Text):
        return Prompt((Message("user", example.text),), origin=example.origin)
    assert isinstance(example, Chat)
    last = max(i for i, m in enumerate(example.messages) if m.role == "assistant")  # every chat of a row has one
    answer = example.messages[last]
    text = "" if answer.tool_calls else without_empty_block(answer.content).strip()
    return Prompt(example.messages[:last], text or None, None, example.tools, example.media, example.origin)


def _text(example: Prompt) -> Text:
    only = len(example.messages) == 1 and example.messages[0].role == "user"
    if not only or example.reference is not None or example.verifier or example.tools or example.media:
        raise DataError(
            f"{example.origin}: this prompt is more than a text (turns, a reference, tools or media)",
            hint='name the format text and its column: {"text": …}',
        )
    return Text(example.messages[0].content, example.origin)
