"""bfcl-eval's result and score files -> a record for every item.

A result file has a line for each item that was asked, a score file a line on the whole and then one for each item that
failed: an item is right if it was asked and did not fail.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from souping.core import Item, Record, UserError

FAILED = "Error during inference: "
"""How bfcl-eval's generation marks an item whose answer could not be had; such an item counts as wrong in every
category (bfcl-eval counts it as right where no call may be made)."""
TOO_LONG = "does not fit the context"


def records(results: Path, scores: Path, items: Sequence[Item]) -> list[Record]:
    """The records of the items, in their order, from one model's folders `result/MODEL` and `score/MODEL`.

    Raises:
        UserError: an item has no result, or its category no score.
    """
    answers = {str(row["id"]): row for path in _files(results, "result") for row in _rows(path)}
    judged = {path.name.removesuffix("_score.json"): _rows(path) for path in _files(scores, "score")}
    wrong = {category: {str(row["id"]) for row in list(rows)[1:]} for category, rows in judged.items()}
    found = []
    for item in items:
        if item.id not in answers:
            raise UserError(f"{results}: no result for item {item.id}")
        if f"BFCL_v4_{item.category}" not in wrong:
            raise UserError(f"{scores}: no score file for {item.category}")
        answer = answers[item.id]
        right = item.id not in wrong[f"BFCL_v4_{item.category}"] and not _failed(answer)
        found.append(Record(item=item.id, score=float(right), output=_text(answer["result"])))
    return found


def failure(records: Sequence[Record]) -> str | None:
    """Why no item at all could be answered, if that is so and it is not for want of context."""
    reasons = [record.output.removeprefix(FAILED) for record in records if record.output.startswith(FAILED)]
    other = [reason for reason in reasons if TOO_LONG not in reason]
    return other[0] if other and len(reasons) == len(records) else None


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.rglob(f"BFCL_v4_*_{kind}.json"))


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _failed(answer: Mapping[str, Any]) -> bool:
    return "traceback" in answer and str(answer["result"]).startswith(FAILED)


def _text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
