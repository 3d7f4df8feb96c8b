"""lm-evaluation-harness on the live poured module: any of its tasks, item by item."""
