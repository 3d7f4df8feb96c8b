"""Items of BFCL without bfcl-eval: how many each file has, and what they share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

NON_LIVE = {
    "simple_python": 400, "simple_java": 100, "simple_javascript": 50, "multiple": 200, "parallel": 200,
    "parallel_multiple": 200, "irrelevance": 240,
}  # fmt: skip
LIVE_ITEMS = {
    "live_simple": 258, "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24,
    "live_irrelevance": 884, "live_relevance": 16,
}  # fmt: skip
"""Items of each file, as bfcl-eval 2026.3.23 has them. BFCL's live accuracy is over items, not over files."""
MULTI_TURN = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
WEB_SEARCH = ("web_search_base", "web_search_no_snippet")
MEMORY = ("memory_kv", "memory_vector", "memory_rec_sum")
SINGLE_TURN = (*NON_LIVE, *LIVE_ITEMS)
FILE_ITEMS: Mapping[str, int] = {**NON_LIVE, **LIVE_ITEMS, **dict.fromkeys(MULTI_TURN, 200)}
"""Items of the 17 files, 4,441 together."""

VARIANT = re.compile(r"(multi_turn|web_search|memory)_(?:\w+?_)?(\d.*)")
"""The id of an item that several files have in a variant: its family and its number."""


def shared_content(item: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """Texts of what an item may share with others; items that have one of them in common belong to one group.

    `entry` is the item in BFCL's data. It may be empty, as logs only have the entries of failed items.
    """
    variant = VARIANT.fullmatch(item)
    # Items of a single turn share documents of functions.
    if variant is None:
        docs = entry.get("function") or []
        for doc in docs if isinstance(docs, list) else [docs]:
            yield f"function {json.dumps(doc, sort_keys=True)}"
        return
    # One number is one scenario in all files of a family.
    yield f"story {variant[1]} {variant[2]}"
    if "initial_config" in entry:
        yield f"state {json.dumps(entry['initial_config'], sort_keys=True)}"
    turns = entry.get("question")
    if isinstance(turns, list) and turns:
        yield f"question {json.dumps(turns[0], sort_keys=True)}"
