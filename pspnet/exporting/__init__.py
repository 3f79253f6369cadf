"""A trained network as a graph for other runtimes: conversion, quantisation, and the check against PyTorch."""
