"""Scores from a confusion matrix, the protocols that fill it, and the pictures and tables that show it."""
