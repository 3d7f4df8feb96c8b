"""Do leaderboards have weakly correlated categories, beyond chance, and do their experts last?

    python -m benchmarks.leaderboards [--mmlu-pro MMLU-Pro/eval_results] [--bfcl-v1 BFCL-Result/2024-08-11/score]
        [--out FILE.md]

The paper's tables are part of souping. MMLU-Pro is `eval_results/` of github.com/TIGER-AI-Lab/MMLU-Pro (commit f418b11,
Apache-2.0), or an .npz made of it: `models`, `categories`, `category` [I] and `score` [M, I], which is 1 if
`pred == answer`, 0 if not or if there is no prediction, 2 if the model's file lacks the question. BFCL v1 is
github.com/HuanzhiMao/BFCL-Result (commit b4adfc9). `--out` gets what is printed.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.leaderboard_data import (
    MISSING_LIMIT,
    Board,
    bfcl_v1,
    mmlu_pro,
    paper_boards,
)
from benchmarks.leaderboard_measures import (
    FEWEST_FAMILIES,
    Estimate,
    Experts,
    Numbers,
    Subsets,
    correlations,
    fewest_models,
    over_families,
    resampled_means,
    weak_pairs,
)
from benchmarks.leaderboard_null import fit
from benchmarks.leaderboard_page import Measured, results
from souping.core.types import UserError

EVERY = Subsets(size=0)
NEIGHBOURS = Subsets(size=5)
"""As many models as the paper's tables have candidates, as close as a leaderboard has them."""
SUBSETS = (
    NEIGHBOURS,
    Subsets(size=5, stride=2),
    Subsets(size=5, stride=4),
    Subsets(size=8),
    Subsets(size=12),
    EVERY,
)
SIMULATED = 200
"""Boards drawn from the null."""
RESAMPLED = 100
"""Draws of the items for the experts."""


def pairs(board: Board, subsets: Subsets) -> dict[str, Estimate]:
    """Weakly correlated pairs of a board, beside chance."""

    def measure(part: Board) -> Numbers:
        # The same random numbers for every part, so that leaving out a family changes little else.
        null = fit(part)
        simulated = None
        if null is not None:
            simulated = null.draws(SIMULATED, np.random.default_rng(0))
        return weak_pairs(part, subsets, simulated)

    return over_families(board, measure)


def experts(board: Board) -> dict[str, Estimate]:
    """Stability of the experts of neighbours."""
    draws = resampled_means(board, RESAMPLED, np.random.default_rng(1))
    known = Experts(board=board, draws=draws)
    return over_families(board, lambda part: known.numbers(part, NEIGHBOURS))


def weakest(board: Board) -> tuple[str, str]:
    """The two categories with the smallest correlation over the whole board."""
    rho = np.abs(correlations(board.means))
    a, b = np.triu_indices(len(board.categories), 1)
    place = int(np.nanargmin(rho))
    return board.categories[a[place]], board.categories[b[place]]


def measured(
    board: Board, choices: Sequence[Subsets], missing: dict[str, float] | None
) -> Measured:
    """All that is measured on a board."""
    fitting = [subsets for subsets in choices if subsets.fits(fewest_models(board))]
    return Measured(
        board=board,
        pairs={subsets: pairs(board, subsets) for subsets in fitting},
        weakest=weakest(board),
        experts=experts(board) if board.answers is not None else {},
        missing=missing,
    )


@dataclass
class Boards:
    """What is measured, in the order in which it is shown."""

    real: list[Measured] = field(default_factory=list)
    paper: list[Measured] = field(default_factory=list)

    def add(self, board: Board, missing: dict[str, float] | None) -> None:
        """A board, and the same without models of which many answers are missing.

        Raises:
            UserError: too few models for a subset of neighbours.
        """
        if not NEIGHBOURS.fits(fewest_models(board)):
            raise UserError(f"{board.name}: {len(board.models)} models are too few")
        self.real.append(measured(board, SUBSETS, missing))
        sparse = [name for name, share in (missing or {}).items() if share > MISSING_LIMIT]
        complete = board.without(sparse)
        if sparse and NEIGHBOURS.fits(fewest_models(complete)):
            self.real.append(measured(complete, SUBSETS, None))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mmlu-pro", type=Path)
    parser.add_argument("--bfcl-v1", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--date", default=str(datetime.date.today()))
    args = parser.parse_args(words)
    start = time.process_time()
    boards = Boards()
    for board in paper_boards():
        boards.paper.append(measured(board, (EVERY,), None))
    if args.bfcl_v1:
        boards.add(*bfcl_v1(args.bfcl_v1))
    if args.mmlu_pro:
        boards.add(*mmlu_pro(args.mmlu_pro))
    text = results(boards.real, boards.paper, args.date)
    seconds = time.process_time() - start
    print(text, end="")
    print(f"{seconds:.0f} CPU seconds; intervals need {FEWEST_FAMILIES} families")
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
