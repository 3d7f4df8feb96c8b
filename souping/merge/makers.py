"""Backends that can make a recipe again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from souping.core.types import Recipe
from souping.merge.backend import MergeBackend
from souping.merge.local import LocalMerge
from souping.merge.mergekit import MergekitMerge

MAKERS: Mapping[str | None, Callable[[], MergeBackend]] = {
    LocalMerge.by: LocalMerge,
    MergekitMerge.by: MergekitMerge,
}
"""{`by` in the settings of a recipe: the backend of this package that makes it}"""


def maker(backend: MergeBackend, recipe: Recipe) -> MergeBackend:
    """The backend that can make a recipe again: `backend` itself unless only another one of this package can.

    The other one has the settings of `backend` that no recipe holds.
    """
    by = recipe.settings.get("by")
    if by == backend.by or by not in MAKERS:
        return backend
    return MAKERS[by]().with_settings(
        {"allow_pickle": backend.allow_pickle, "nonfinite": backend.nonfinite}
    )
