"""Conversion of published data sets (VOC, SBD, ADE20K, Cityscapes, CamVid) to training channels.

Imports `data.io`, `system`, `classes` and `errors`. Start with `voc.py` and `layouts.py`.
"""
