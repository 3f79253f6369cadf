"""State of a run that outlives the process: position, checkpoints, and the choice of the checkpoint to resume from.

Imports evaluation scores and system. Start with checkpoint.py.
"""
