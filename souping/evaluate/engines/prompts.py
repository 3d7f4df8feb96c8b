"""From an item to tokens, and from a text to the answer in it: alike for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from souping.core import Item, UserError


def render(tokenizer: Any, item: Item) -> list[int]:
    """The prompt's tokens: a text as it stands, chat messages through the tokenizer's chat template.

    Raises:
        UserError: there is no chat template, or it refuses the messages.
    """
    if isinstance(item.prompt, str):
        return list(tokenizer(item.prompt)["input_ids"])
    return list(tokenizer(_chat(tokenizer, item), add_special_tokens=False)["input_ids"])


def _chat(tokenizer: Any, item: Item) -> str:
    """The item's messages and tools as the tokenizer's chat template writes them."""
    from jinja2 import TemplateError

    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise UserError(f"item {item.id}: chat messages need a chat template, and the tokenizer has none")
    if item.tools and "tools" not in str(template):
        raise UserError(f"item {item.id}: the tokenizer's chat template shows no tools; put them into a message")
    messages, tools = [dict(m) for m in item.prompt], [dict(tool) for tool in item.tools]  # type: ignore[arg-type]
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools or None, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise UserError(f"item {item.id}: the chat template refuses its messages: {error}") from error
    return str(text)


def check_context(items: Sequence[Item], prompts: Sequence[Sequence[int]], new: int, limit: int | None) -> None:
    """Refuse a prompt that leaves no room for `new` tokens in a context of `limit`, or that is empty.

    Raises:
        UserError: the message names the item.
    """
    for item, prompt in zip(items, prompts, strict=True):
        if not prompt:
            raise UserError(f"item {item.id}: the tokenizer makes no token of its prompt")
        if limit and len(prompt) + new > limit:
            raise UserError(
                f"item {item.id}: {len(prompt)} prompt tokens and evaluator.max_new_tokens={new} "
                f"exceed the model's context of {limit}"
            )


def cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    ends = [text.find(end) for end in stop if end in text]
    return text[: min(ends)] if ends else text
