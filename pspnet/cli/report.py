"""`pspnet report`: evaluations as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from pspnet.config.command_line import parse_settings
from pspnet.evaluation.html_report.report_request import ReportRequest

_DESCRIPTION = """\
Write one self-contained HTML file about an evaluation, or several side by side (docs/evaluation.md): scores with
intervals, classes, confusions, calibration, pictures, training curves and provenance. Several folders are compared, the
others with the first, on the same images. A training run's folder alone gives its curves and scores."""


def report_command(argv: Sequence[str]) -> int:
    """Write the page and print its path."""
    request = parse_settings(ReportRequest, argv, "pspnet report", _DESCRIPTION)
    # Imported here, so that --help and wrong settings respond without importing torch.
    from pspnet.evaluation.html_report.page import write_report

    write_report(request)
    print(f"Written: {request.output}")
    return 0
