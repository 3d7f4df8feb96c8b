"""Soup that is in `out` already: a command that is repeated finds its own there, verifies it and keeps it."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from souping.core.files import hold, nearby
from souping.core.types import Json, LateError, Recipe, UserError, part
from souping.pipeline.merge_only import read_recipe
from souping.pipeline.models import PREFIX, OpenPool, check_space, free_target, scratch_place
from souping.pipeline.settings import MergeSettings, RunSettings

RECIPE = "recipe.json"


def check_target(run: MergeSettings) -> None:
    """Refuse a target that is in use, unless it is a run's and holds a soup (UserError)."""
    if not isinstance(run, RunSettings) or soup_in(run.out) is None:
        free_target(run.out)


def soup_in(out: Path) -> Recipe | None:
    """The recipe of the soup in a folder; None where there is none, or none that can be read."""
    try:
        return read_recipe(out / RECIPE)[0]
    except (UserError, OSError):
        return None


def check_kept(run: RunSettings, pool: OpenPool) -> None:
    """Refuse a soup in `out` that no search over this pool can find: of other models or other merge settings."""
    there = soup_in(run.out)
    if there is None:
        return
    names = {candidate.fingerprint: candidate.name for candidate in pool.candidates}
    own = {names.get(content, ""): weight for content, weight in zip(there.fingerprints, there.weights, strict=True)}
    if "" in own or pool.recipe(own).fingerprint != there.fingerprint:
        raise UserError(f"out={run.out} holds soup {there.id} of other models or merge settings: choose another folder")


def verify(pool: OpenPool, recipe: Recipe, out: Path) -> None:
    """Make the soup again in a temporary folder and hold every file of it but the card against those in `out`.

    Raises:
        UserError: a file is missing or differs.
    """
    place = scratch_place(pool.pool.soup_bytes)
    check_space(place, pool.pool.soup_bytes)
    with TemporaryDirectory(prefix=PREFIX, dir=place) as folder, hold(Path(folder)):
        made = pool.write(recipe, Path(folder) / "soup", {})
        for path in sorted(made.iterdir()):
            there = out / path.name
            if path.name != RECIPE and not (there.is_file() and filecmp.cmp(path, there, shallow=False)):
                raise UserError(f"out={out}: {path.name} is not what its recipe makes: move it away, or choose another")


def written_soup(run: MergeSettings, report: Mapping[str, Json]) -> Path | None:
    """The folder of a run's soup, None where it wrote none.

    Raises:
        LateError: `out` holds another soup, which was left there.
    """
    found = part(report, "recipe").get("id")
    there = soup_in(run.out) if isinstance(run, RunSettings) and found and not run.stop_after else None
    if there is not None and there.id != found:
        kept = nearby(run.run_dir / RECIPE)
        raise LateError(
            f"out={run.out} holds soup {there.id} of an earlier run, and this run found soup {found}: nothing was "
            f"replaced. To write it: python -m souping +experiment=rebuild recipe={kept} out=NEW"
        )
    return run.out if ("soup" in report or "rebuild" in report) and run.out.exists() else None
