"""Paper: its published tables as CSV files, and the tasks that it needs."""
