"""Protocols that run a network over images to be scored: whole, slide, multiscale and builtin.

Imports metrics and models. Start with factory.py, then whole.py and sliding.py.
"""
