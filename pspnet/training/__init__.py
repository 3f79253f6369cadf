"""Losses, optimizers, checkpoints and the loop that trains a model."""
