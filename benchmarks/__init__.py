"""Benchmark scripts, one per question of docs/benchmarks.md, and plot.py, which draws their figures.

They may import everything of pspnet and sagemaker_entry. Start reading at inference.py.
"""
