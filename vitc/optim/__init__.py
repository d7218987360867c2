"""Optimizers, learning-rate schedules and the weight average."""
