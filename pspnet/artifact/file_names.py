"""File names and format of a model directory and its archive. Needs no torch."""

from __future__ import annotations

MODEL_FORMAT = "pspnet-model-1"

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CODE_NAME = "code"
EXPORTS_NAME = "exports"
ARCHIVE_NAME = "model.tar.gz"
