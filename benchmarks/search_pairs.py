"""The adaptive search beside an earlier one, split by split: does a change of the search cost regret?

    python -m benchmarks.search --methods adaptive --seeds 100 --keep FOLDER
    python benchmarks/search_pairs.py FOLDER [--against FILE.csv] [--write FILE.csv] [--out FILE.md]

FOLDER holds what `search.py --keep` left. `--write` keeps its picks and regrets as rows of (table, share, seed, pick,
regret); `--against` compares them, search by search on the same splits, with rows that were kept before. The default is
the search of commit edea1c7 (2026-11-26), which had five files in place of today's two.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

EARLIER = Path(__file__).parent / "results" / "search-picks-edea1c7.csv"
Key = tuple[str, str]
"""Table and share of the full grid's items, or `stop`."""


def kept(folder: Path) -> dict[Key, np.ndarray]:
    """{(table, share): regret and pick of each seed [seeds, 2]} of the adaptive search."""
    picks = {}
    for path in sorted(folder.glob("* adaptive *.npy")):
        table, _, _, share, *_ = path.stem.split(" ")
        regret_and_pick = np.load(path)[:, [0, 5]]
        picks[table, share] = regret_and_pick
    return picks


def read(path: Path) -> dict[Key, np.ndarray]:
    """The same from a file that `write` made."""
    rows: dict[Key, list[tuple[float, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault((row["table"], row["share"]), []).append(
                (float(row["regret"]), float(row["pick"]))
            )
    return {key: np.array(values) for key, values in rows.items()}


def write(path: Path, found: dict[Key, np.ndarray]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "share", "seed", "pick", "regret"])
        for (table, share), values in found.items():
            writer.writerows(
                [table, share, n, int(pick), f"{regret:.4f}"]
                for n, (regret, pick) in enumerate(values)
            )


def compared(now: dict[Key, np.ndarray], before: dict[Key, np.ndarray]) -> str:
    """Mean differences with their standard errors: tables down, shares across."""
    both = [key for key in now if key in before]
    shares = list(dict.fromkeys(share for _, share in both))
    change = {key: now[key][:, 0] - before[key][:, 0] for key in both}
    lines = [f"| table | {' | '.join(shares)} | mean |", "|---|" + "---|" * (len(shares) + 1)]
    for table in dict.fromkeys(table for table, _ in both):
        own = [change[table, share] for share in shares if (table, share) in change]
        queries = [f"{one.mean():+.2f} ({one.std(ddof=1) / len(one) ** 0.5:.2f})" for one in own]
        lines.append(
            f"| {table} | {' | '.join(queries)} | {np.mean([one.mean() for one in own]):+.2f} |"
        )
    means = []
    for share in shares:
        own = [regrets.mean() for (_, name), regrets in change.items() if name == share]
        means.append(np.mean(own))
    lines.append(
        f"| all | {' | '.join(f'{mean:+.2f}' for mean in means)} | {np.mean(means):+.2f} |"
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", type=Path, default=EARLIER)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = kept(given.folder)
    if given.write:
        write(given.write, found)
        return
    text = compared(found, read(given.against))
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
