"""Statistics of scores: correlations, intervals, paired tests, and how steady a selection is."""
