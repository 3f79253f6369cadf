"""Losses, optimizers, learning-rate schedules, early stopping and the moving average of the weights.

Imports classes and errors only. Start with losses.py.
"""
