"""A text that two tokenizers encode differently."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterable, Mapping
from typing import Any

from souping.core.text import first_line, shown

COMPARED_TEXTS = 2000
"""Texts that are compared, and as many random ones."""
RANDOM_TEXT_TOKENS = 8
"""Tokens of a random text."""
UNUSUAL = string.printable + "éßﬁİⅧ½中文日本語한국어عربيहिन्दी🙂\u0301\u00a0\u200b\u200d\ufffd"
"""Characters of random texts: ordinary ones, and those that normalizers and pre-tokenizers treat in their own ways."""


def first_difference(
    definitions: Iterable[Mapping[str, Any]], tokens: Iterable[str], texts: Iterable[str]
) -> str | None:
    """What a message says of a text that two contents of tokenizer.json encode differently; None if there is none.

    The texts are those of single `tokens`, random ones of tokens and other characters (the same in every run), and
    `texts`.
    """
    from tokenizers import Tokenizer

    try:
        a, b = [Tokenizer.from_str(json.dumps(definition)) for definition in definitions]

        def differs(text: str) -> bool:
            a_ids = a.encode(text, add_special_tokens=False).ids
            b_ids = b.encode(text, add_special_tokens=False).ids
            return bool(a_ids != b_ids)

        # A token that `a` does not have counts as its first.
        samples = [a.decode([a.token_to_id(token) or 0]) for token in tokens]
        rng = random.Random(0)
        for _ in range(COMPARED_TEXTS):
            ids = [rng.randrange(a.get_vocab_size()) for _ in range(RANDOM_TEXT_TOKENS)]
            samples.append(a.decode(ids) + "".join(rng.choices(UNUSUAL, k=RANDOM_TEXT_TOKENS)))
        text = next(filter(differs, [*samples, *texts]), None)
        if text is None:
            return None
        # One word of the text is enough, if it differs alone.
        word = next(filter(differs, text.split()), text)
    except Exception as error:  # the library has no class of its own
        return f"they cannot be compared ({first_line(error)})"
    return f"'{shown(word)}' is encoded differently"
