"""Souping: from several fine-tuned checkpoints of one model to one better checkpoint, with the evidence.

The names below are the library's. Each is imported when it is first used, so that `import souping` loads nothing else.
"""

import sys
from importlib import import_module

if sys.platform == "win32":
    raise ImportError(
        "souping runs on Linux and macOS: on Windows, install it inside WSL (wsl --install)"
    )

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
