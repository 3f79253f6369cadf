"""Speed and memory of training: prefetch, async readback, torch.compile, activation checkpointing, micro-batches.

Imports data and system; memory.py also the training step. The results of a run do not depend on this folder.
"""
