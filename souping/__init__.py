"""Souping: from several fine-tuned checkpoints of one model to one better checkpoint, with the evidence.

The names below are the library's. Each is imported when it is first used, so that `import souping` loads nothing else.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError(
        "souping runs on Linux and macOS: on Windows, install it inside WSL (wsl --install)"
    )

if TYPE_CHECKING:
    from souping.analysis.consistency import Consistency as Consistency
    from souping.analysis.correlation import (
        kendall as kendall,
        pearson as pearson,
        spearman as spearman,
    )
    from souping.analysis.shapley import Shapley as Shapley
    from souping.analysis.surface import ResponseSurface as ResponseSurface
    from souping.analysis.wins import CategoryWins as CategoryWins, ItemWins as ItemWins
    from souping.comparison.api import compare as compare
    from souping.core.scores import (
        Mean as Mean,
        Tree as Tree,
        Weighted as Weighted,
        WorstCategory as WorstCategory,
        read_table as read_table,
    )
    from souping.core.system import __version__ as __version__
    from souping.core.types import (
        Item as Item,
        Recipe as Recipe,
        ScoreMatrix as ScoreMatrix,
        Selection as Selection,
        UserError as UserError,
    )
    from souping.evaluate.generate import LocalEvaluator as LocalEvaluator
    from souping.merge.local import LocalMerge as LocalMerge
    from souping.runs.library import (
        RunResult as RunResult,
        run as run,
        select as select,
        soup as soup,
    )
    from souping.search.adaptive import Adaptive as Adaptive
    from souping.search.points import (
        Fixed as Fixed,
        GreedySoup as GreedySoup,
        Grid as Grid,
        Nevergrad as Nevergrad,
        Uniform as Uniform,
    )
    from souping.selection import All as All, Greedy as Greedy, SoCE as SoCE, TopK as TopK

_MODULES = {
    "souping.core.system": ("__version__",),
    "souping.core.types": ("Item", "Recipe", "ScoreMatrix", "Selection", "UserError"),
    "souping.core.scores": ("Mean", "Tree", "Weighted", "WorstCategory", "read_table"),
    "souping.analysis.consistency": ("Consistency",),
    "souping.analysis.correlation": ("kendall", "pearson", "spearman"),
    "souping.analysis.shapley": ("Shapley",),
    "souping.analysis.surface": ("ResponseSurface",),
    "souping.analysis.wins": ("CategoryWins", "ItemWins"),
    "souping.selection": ("All", "Greedy", "SoCE", "TopK"),
    "souping.search.adaptive": ("Adaptive",),
    "souping.search.points": ("Fixed", "GreedySoup", "Grid", "Nevergrad", "Uniform"),
    "souping.evaluate.generate": ("LocalEvaluator",),
    "souping.merge.local": ("LocalMerge",),
    "souping.comparison.api": ("compare",),
    "souping.runs.library": ("RunResult", "run", "select", "soup"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'souping' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
