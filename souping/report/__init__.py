"""Reports for people: report.json, report.md, report.html, plots, the soup's card, the table at the end of a run."""
