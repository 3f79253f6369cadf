"""Measurement tools: interleaved timing, the machine's peak, operation counts, memory and the record of a run.

This package may import inference and everything below it. Start reading at interleave.py, then benchmark.py, which
`pspnet benchmark` runs.
"""
