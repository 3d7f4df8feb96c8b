"""Sections that show analyses: one module an analysis, found by being here."""
