"""Looks at the test split: what is claimed, what was seen before, and the split's opening."""
