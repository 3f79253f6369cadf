"""From a model directory and images to masks: `Predictor`, its limits, and the runtimes that execute a network.

May import artifact, data, models, masks, driving and system. Start with `predictor.py`, then `runtimes/base.py`.
"""
