"""Training of a model: losses, optimizers, checkpoints and the training loop.

Imports evaluation, artifact, data, models, config and system, and nothing above them. Start with `train` in loop.py,
then setup.py (the parts of a run) and step.py (one optimizer step).
"""
