"""Runtimes: the backends that turn images into masks, and their automatic selection.

This package may import artifact and models, and everything below them. Start reading at base.py (the interface), then
factory.py and eager.py.
"""
