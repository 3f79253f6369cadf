"""HTML report of evaluations: scores with intervals, classes, confusions, calibration, pictures, comparison.

Imports the rest of evaluation, data and system. Start with page.py; templates/ holds the HTML, CSS and JavaScript.
"""
