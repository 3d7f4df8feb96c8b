"""Tokens that end the answers of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from souping.checkpoints.header import broken, inside, json_object
from souping.core.text import shown
from souping.core.types import TokenIds

GENERATION = "generation_config.json"


def eos_token_ids(folder: Path) -> TokenIds:
    """Tokens that end a model's answers, ascending, from generation_config.json, or from config.json if that has none.

    Raises:
        UserError: a file is broken, or names something that is not a token.
    """
    for name in (GENERATION, "config.json"):
        path = inside(folder, name)
        if path.is_file():
            ends = _token_ids(path, json_object(path))
            if ends:
                return ends
    return ()


def _token_ids(path: Path, table: Mapping[str, Any]) -> TokenIds:
    """The eos_token_id of a config, else of the text model in it, ascending. Negative ids stand for none."""
    text = table.get("text_config")
    of_text = text.get("eos_token_id") if isinstance(text, dict) else None
    value = table.get("eos_token_id", of_text)
    if value is None:
        return ()
    tokens = value if isinstance(value, list) else [value]
    if not all(type(token) is int and token < 1 << 31 for token in tokens):
        raise broken(
            path, f"eos_token_id is {shown(str(value)[:100])}, not one token or a list of them"
        )
    return tuple(sorted({token for token in tokens if token >= 0}))
