"""Weights: files, naming layouts of other libraries, loading, the hub."""
