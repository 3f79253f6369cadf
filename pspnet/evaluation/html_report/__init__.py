"""Evaluations as one HTML page: scores with intervals, classes, confusions, calibration, pictures, comparison."""
