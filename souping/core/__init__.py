"""Data types, protocols, checks of values, and files, for all other packages."""
