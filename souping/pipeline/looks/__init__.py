"""Looks at the report fold: what is claimed, what was seen before, and the fold's opening."""
