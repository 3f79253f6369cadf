"""`pspnet export`: write a trained model as a graph for other runtimes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pspnet.config.command_line import parse_settings
from pspnet.exporting.export_request import ExportRequest

_DESCRIPTION = """\
Write a model as an ONNX, OpenVINO, TorchScript or torch.export graph for images of any size, and verify it against
PyTorch (docs/export.md). With --int8, calibrate an 8-bit graph on a data set; it is rejected if it loses more than 0.5
points of mIoU."""


def export_command(argv: Sequence[str]) -> int:
    """Write an export, and print its verification and scores."""
    request = parse_settings(ExportRequest, argv, "pspnet export", _DESCRIPTION)
    # Imported here, so that --help and wrong settings respond without importing torch.
    from pspnet.exporting.exporter import export_model

    started = time.monotonic()
    export = export_model(request)
    int8 = export.record.int8
    if int8:
        print(
            f"{int8['quantised_operations']} of {int8['weighted_operations']} convolutions and matrix products are "
            f"8-bit; settings: {int8['settings']}."
        )
    size = sum(export.record.files.values()) / 1e6
    print(f"Written: {export.folder} ({size:.1f} MB, {time.monotonic() - started:.0f} s)")
    return 0
