"""One soup by souping, from folders to a folder, as a process of its own: `merge_ours.py OUT WEIGHTS FOLDER...`."""

from __future__ import annotations

import sys
from pathlib import Path

from souping.core.types import Recipe
from souping.merge.planner import plan
from souping.merge.writer import write_checkpoint


def main() -> None:
    out, weights, *paths = sys.argv[1:]
    folders = {f"m{i}": Path(path) for i, path in enumerate(paths)}
    recipe = Recipe(
        ingredients=tuple(folders),
        fingerprints=tuple(folders),
        weights=tuple(float(w) for w in weights.split(",")),
        dtype="bfloat16",
    )
    write_checkpoint(plan(recipe, folders), Path(out))


if __name__ == "__main__":
    main()
