"""Hold the main job against the numbers that the project promises. Arguments: two run directories, two durations."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any


def load(folder: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((Path(folder) / "report.json").read_text())
    return report


OWN = {"cost": 0, "rebuild": "", "provenance": 0}
first, second = load(sys.argv[1]), load(sys.argv[2])
seconds, again = int(sys.argv[3]), int(sys.argv[4])
cost, splits = first["cost"], first["splits"]
trials = len(list(csv.DictReader((Path(sys.argv[1]) / "trials.csv").open())))
checks = {
    f"splits {splits}": splits["select"] >= 160
    and splits["search"] >= 160
    and splits["test"] >= 400,
    "the second run evaluates nothing": second["cost"]["evaluated_items"] == 0,
    f"{trials} trials": trials == cost["trials"] > 0,
    "the two reports are equal, cost, provenance and place aside": {**first, **OWN}
    == {**second, **OWN},
    "the two soups are equal": all(
        file.read_bytes() == (Path(sys.argv[2]) / "soup" / file.name).read_bytes()
        for file in (Path(sys.argv[1]) / "soup").iterdir()
        if file.name != "README.md"  # whose rebuild command names its own place
    ),
}
print(
    f"first run {seconds} s, second run {again} s, {cost['evaluated_items'] / cost['seconds']:.0f} items a second"
)
for name, good in checks.items():
    print("ok  " if good else "FAIL", name)
sys.exit(not all(checks.values()))
