"""Recompute what `analysis=paper` shows: `python -m examples.paper` writes souping/paper/findings.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from examples.paper.findings import TABLES, findings, leaderboard, selections
from souping.analysis.correlation import pearson
from souping.paper import DATA

SENTENCES = (
    "Of the paper's selections, only that of 8B follows from the stated rule (|rho| < 0.2 by Pearson, ties to the "
    "better overall). At 70B the rule adds a fourth expert; on MGSM it picks one expert for everything.",
    "Figures 2, 3, 5 and 6 and Appendices B and D need the paper's soups. The sections on categories, gains, parents, "
    "Shapley values and ingredients show the same for the soups of this run, which are other models.",
)


def figures() -> Any:
    """The content of findings.json."""
    found, board = findings(), leaderboard()
    verdicts = Counter(one.verdict for one in found)
    whole = verdicts["agrees"] + verdicts["differs"]
    head = f"{verdicts['agrees']} of {whole} figures of arXiv 2511.13254v1 follow from its published figures."
    matrix = pearson(board.values).rho.tolist()
    return rounded(
        {
            "sentences": [head, *SENTENCES],
            "findings": [asdict(one) for one in found],
            "figure1": {"models": board.models, "categories": board.categories, "matrix": matrix},
            "selections": [selections(table) for table in TABLES],
        }
    )


def rounded(value: Any) -> Any:
    """A value with numbers of six digits: further ones differ between machines."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    (DATA / "findings.json").write_text(json.dumps(figures(), indent=1) + "\n", encoding="utf-8")
