"""Statistics: from the scores of models on the same items to differences with intervals and p-values.

Nothing here knows a report, a log or a sentence: the rooms above bring scores and put the results into words.
"""
