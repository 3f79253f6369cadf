"""Reading and writing of image and annotation files.

Imports only `system` and `errors`. Start with `images.py`; `jpeg.py` and `palette_png.py` are faster decoders.
"""
