"""Geometry of the road ahead in a mask: drivable corridor and nearest obstacle.

Imports numpy and `pspnet.errors` only, so that a Lambda function can ship it. Start with `corridor.py`;
`mask_summary.py` writes both as JSON, and docs/driving.md defines them.
"""
