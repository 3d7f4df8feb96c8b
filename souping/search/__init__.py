"""Weight search: settings are checked at composition; `start` opens a search that is asked and told."""

from souping.search.adaptive import Adaptive
from souping.search.nevergrad import Nevergrad, NevergradSearch
from souping.search.points import Fixed, GreedySearch, GreedySoup, Grid, Search, Uniform
from souping.search.running import AdaptiveSearch

__all__ = [
    "Adaptive",
    "AdaptiveSearch",
    "Fixed",
    "GreedySearch",
    "GreedySoup",
    "Grid",
    "Nevergrad",
    "NevergradSearch",
    "Search",
    "Uniform",
]
