"""Measuring: interleaved timing, the machine's peak, operations, memory, and the record that goes with a figure."""
