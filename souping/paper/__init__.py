"""Published figures of the paper (arXiv 2511.13254), the analysis that compares them, and FLORES-36 as tasks."""
