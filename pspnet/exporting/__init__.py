"""Export of a trained network as a graph for other runtimes: conversion, quantisation and verification.

This package may import evaluation and everything below it. Start reading at exporter.py, then formats.py and
export_network.py.
"""
