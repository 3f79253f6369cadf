"""One script for each figure in docs/benchmarks.md, and what they share."""
