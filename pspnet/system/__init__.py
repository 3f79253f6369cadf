"""Operating system services: atomic files and folders, downloads, devices, precision, signals and exit codes.

Imports only `pspnet.errors`. Start with `device.py`, `atomic_files.py` and `exit_codes.py`.
"""
