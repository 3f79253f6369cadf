"""Fused inference models: batch norm folded into the convolutions, Winograd convolutions on CPUs.

Imports only the other modules of `models`. Start with `folded.py`.
"""
