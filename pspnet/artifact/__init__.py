"""The model directory: weights and config, the code that deploys with them, and records of exported graphs.

Imports `models`, `config` (for types only), `system`, `classes` and `errors`. Start with `model_directory.py`;
`file_names.py` and `export_record.py` need no torch.
"""
