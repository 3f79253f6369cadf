"""The networks: backbone, pyramid head, builders and weights, with fused inference models and imported weights.

Imports only `classes` and `errors` of the project. Start with `pspnet.py`, then `resnet.py` and `pyramid.py`;
`build.py` holds the published values.
"""
