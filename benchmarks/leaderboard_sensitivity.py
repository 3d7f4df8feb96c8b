"""Two doubts about the finding on MMLU-Pro: is a second ability enough to explain it, and are its families too coarse?

    python -m benchmarks.leaderboard_sensitivity MMLU-Pro/eval_results [--out FILE.md]

The data are those of `leaderboards.py`. A second ability is a shift of each model's ability by category, of rank one:
logit P(model m solves item i of category c) = a_m + s_m l_c - b_i. The shifts are fitted to the category scores, so
noise of the items is part of them, and the share that they explain is an upper limit.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.leaderboard_data import Board, family, mmlu_pro
from benchmarks.leaderboard_measures import Estimate, Numbers, over_families, weak_pairs
from benchmarks.leaderboard_null import GRID, Null, fit
from benchmarks.leaderboard_page import percent
from benchmarks.leaderboards import NEIGHBOURS, SIMULATED
from souping.core.types import FloatArray

GENERATIONS = ("llama-2", "llama-3_1", "llama-3", "mixtral")
"""Words of names that make a family of their own among the finer ones."""
STEPS = 50
"""Steps of Newton to the shifts."""
SHOWN = 3
"""Categories at each end of the second ability that are named."""


def finer_family(model: str) -> str:
    """Family of a model, where generations of one maker are families of their own."""
    for word in GENERATIONS:
        if word in model.lower():
            return word
    return family(model)


def second_ability(board: Board, null: Null) -> tuple[Null, FloatArray]:
    """The null with a second ability, and its loadings [C], which are orthogonal to a shift of all categories."""
    ability = null.ability[:, None]
    difficulties = np.einsum("cs,csk->ck", null.solved, null.posterior)
    sizes = null.solved.sum(axis=1)
    shift = np.zeros_like(board.means)
    for _ in range(STEPS):
        p = _right(ability + shift)
        expected = (p * difficulties).sum(axis=-1) / sizes
        slope = (p * (1 - p) * difficulties).sum(axis=-1) / sizes
        shift += (board.means - expected) / slope
    centred = shift - shift.mean(axis=0) - shift.mean(axis=1, keepdims=True) + shift.mean()
    scores, sizes_of_parts, loadings = np.linalg.svd(centred, full_matrices=False)
    rank_one = sizes_of_parts[0] * np.outer(scores[:, 0], loadings[0])
    return replace(null, p=_right(ability + rank_one)), loadings[0]


def _right(ability: FloatArray) -> FloatArray:
    """[M, C, K] probabilities of a right answer."""
    return np.asarray(1 / (1 + np.exp(GRID - ability[..., None])))


def numbers(board: Board) -> Numbers:
    null = fit(board)
    assert null is not None
    return weak_pairs(board, NEIGHBOURS, null.draws(SIMULATED, np.random.default_rng(0)))


def page(board: Board, date: str) -> str:
    null = fit(board)
    assert null is not None
    one = numbers(board)
    wider, loadings = second_ability(board, null)
    two = weak_pairs(board, NEIGHBOURS, wider.draws(SIMULATED, np.random.default_rng(0)))
    explained = 1 - two["excess"] / one["excess"]
    order = np.argsort(loadings)
    low = [board.categories[c] for c in order[:SHOWN]]
    high = [board.categories[c] for c in order[::-1][:SHOWN]]
    rows = []
    for name, family_of in (("by maker", family), ("by generation", finer_family)):
        estimate = over_families(board, numbers, family_of)["excess"]
        count = len(set(map(family_of, board.models)))
        rows.append(f"| {name} | {count} | {percent(estimate, least=-1.0, sign=True)} |")
    lines = [
        f"# MMLU-Pro: a second ability, and finer families, {date}\n",
        "`python -m benchmarks.leaderboard_sensitivity MMLU-Pro/eval_results`. Pairs of categories with a correlation "
        "between −0.2 and 0.2 among five neighbours by score, as in [leaderboards](leaderboards-2026-11-29.md).\n",
        "| by chance | pairs, % | more are seen, points |",
        "|---|---:|---:|",
        f"| one ability per model | {_share(one['chance'])} | {_share(one['excess'])} |",
        f"| a second one | {_share(two['chance'])} | {_share(two['excess'])} |\n",
        f"The second ability explains {100 * explained:.0f} % of the difference at most: its shifts were fitted to "
        f"the scores, noise included. It sets {', '.join(high)} against {', '.join(low)}.\n",
        "| families | number | difference to one ability, points |",
        "|---|---:|---:|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _share(value: float) -> str:
    return percent(Estimate(value=value))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mmlu_pro", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--date", default=str(datetime.date.today()))
    args = parser.parse_args(words)
    board, _ = mmlu_pro(args.mmlu_pro)
    text = page(board, args.date)
    print(text, end="")
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
