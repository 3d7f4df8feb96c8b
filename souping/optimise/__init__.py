"""Weight search: settings are checked at composition; `start` opens a search that is asked and told."""

from souping.optimise.greedy import GreedySearch, GreedySoup
from souping.optimise.nevergrad import Nevergrad, NevergradSearch
from souping.optimise.points import Fixed, Grid, Uniform
from souping.optimise.search import Search

__all__ = ["Fixed", "GreedySearch", "GreedySoup", "Grid", "Nevergrad", "NevergradSearch", "Search", "Uniform"]
