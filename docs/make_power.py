"""Print the table of docs/reading-a-report.md: the items that show a gain with 80 % power, as in the demo.

    python docs/make_power.py [RUN_DIR]

RUN_DIR is a finished run of `+experiment=bfcl`; by default, the figures of the run that the tests keep.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

KEPT = Path(__file__).resolve().parents[1] / "tests" / "data" / "main_job"
GAINS = (10.0, 5.0, 3.0, 2.0, 1.0)
"""Gains in points, beside the one that the demo shows."""


def table(run: Path) -> str:
    """Rows of the page: a standard error falls with the root of the number of items, so a gain takes 1 / gain^2 items."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    power = report["power"]
    shown = 100 * power["gain"]
    all_items = sum(report["splits"].values())
    rows = []
    for gain in GAINS:
        times = (shown / gain) ** 2
        rows.append(f"| {gain:g} | {about(times * power['items'])} | {about(times * all_items)} |")
    rows.insert(1, f"| {shown:.1f} (the demo) | {power['items']:,} | {all_items:,} |")
    return "\n".join(rows) + "\n"


def about(items: float) -> str:
    """To two digits."""
    return f"{int(float(f'{items:.2g}')):,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=KEPT, metavar="RUN_DIR")
    print(table(parser.parse_args().run), end="")


if __name__ == "__main__":
    main()
