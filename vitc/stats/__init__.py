"""Intervals, tests and distribution curves, free of what is measured."""
