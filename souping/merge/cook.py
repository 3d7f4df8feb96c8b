"""A plan into a complete model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from souping.core import UserError
from souping.merge.average import THREADS, Kitchen, Progress, prepare
from souping.merge.carry import carried
from souping.merge.folder import staged, write_files
from souping.merge.layout import MergePlan

Shares = Callable[[MergePlan, Path, Progress | None], None]
"""Fills the prepared shards in a staging folder: alone, or by ranks that each take a share."""


def cook(
    plan: MergePlan,
    out: Path,
    *,
    progress: Progress | None = None,
    extra_files: Mapping[str, str] | None = None,
    shares: Shares | None = None,
) -> Path:
    """Write the soup of a plan to `out` and return it: shards, index, config, tokenizer, recipe.json, `extra_files`.

    The folder appears whole or not at all. Its bytes follow from the plan and the ingredients alone.

    Raises:
        UserError: `out` is there already, an ingredient has changed or is broken, or the disk is full.
    """
    files: dict[str, str | bytes] = {**carried(plan)}
    for name, text in (extra_files or {}).items():
        if name in files or name in plan.shards:
            raise UserError(f"the extra file {name} would replace a file of the model")
        files[name] = text
    with staged(out) as stage:
        prepare(plan, stage)
        (shares or alone)(plan, stage, progress)
        write_files(stage, files)
    return Path(out)


def alone(plan: MergePlan, stage: Path, progress: Progress | None = None) -> None:
    """All shares in this process, with two threads."""
    with Kitchen(plan, stage) as kitchen:
        kitchen.cook(threads=THREADS, progress=progress)
