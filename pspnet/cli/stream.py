"""Command `pspnet stream`: live masks of a video file, camera or stream, delivered to several sinks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.config.command_help import default_text
from pspnet.config.command_line import parse_settings
from pspnet.config.problems import Problem
from pspnet.config.settings import setting, settings_of
from pspnet.config.values import show
from pspnet.stream.sinks.sink_settings import SinkSettings
from pspnet.stream.stream_settings import StreamSettings

if TYPE_CHECKING:
    from pspnet.stream.model import Model

_SINKS = """Sinks:
  DIR, s3://BUCKET/PREFIX   compact mask files with an index
  FILE.mp4, FILE.mkv        overlay video
  window, web[:PORT]        live overlay in a window, or in a browser on this machine
  -, png:-                  masks on standard output, each after a line of JSON; PNG files only
  http(s)://...             an HTTP request for every mask

Settings of sinks (--sink_setting NAME=VALUE):
{}
See docs/stream.md."""
_STOP_MESSAGE = "no more frames; delivering what was taken. A second signal stops immediately."
_EXIT_MESSAGE = "Stopped immediately: masks that were not delivered and are not on disk are lost."


@dataclass(frozen=True, init=False)
class StreamCommand(StreamSettings):
    """Settings of the command: those of the stream, and the model."""

    model: Path | None = setting(
        None, "Model directory written by training.", group="Model", metavar="MODEL_DIR", allowed="a model directory"
    )
    endpoint: str | None = setting(
        None, "Use this endpoint instead.", group="Model", allowed="name of a SageMaker endpoint, or URL of a server"
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Device of the model.", group="Model")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "float32", "Precision of the network; auto by device.", group="Model"
    )
    runtime: str | None = setting(
        None, "Inference runtime, as in `pspnet predict`.", group="Model", allowed="name of a runtime"
    )
    jpeg_quality: int = setting(90, "JPEG quality of frames for an endpoint.", group="Model", ge=1, le=100)
    classes: str | None = setting(
        None, "Class names for an endpoint, whose responses have none.", group="Model",
        allowed=f"{', '.join(NAMED_CLASS_SETS)}, or a,b,c",
    )  # fmt: skip
    quiet: bool = setting(False, "No status line while running.", group="Delivery")

    def conflicts(self) -> Iterator[Problem]:
        """Both or neither of model and endpoint, and those of the stream."""
        yield from super().conflicts()
        if self.model is None and self.endpoint is None:
            yield Problem("model", "missing", "give a model directory as --model, or --endpoint", ("endpoint",))
        elif self.model is not None and self.endpoint is not None:
            yield Problem("endpoint", f"found {show(self.endpoint)} with model", "give one of them", ("model",))
        elif self.model is not None and self.classes is not None:
            fix = "a model directory has its own class names; omit classes"
            yield Problem("classes", f"found {show(self.classes)} with model", fix, ("model",))


def stream_command(argv: Sequence[str]) -> int:
    """Run a stream until its source ends, or until Ctrl-C or SIGTERM; return the exit code."""
    sinks = settings_of(SinkSettings).values()
    epilog = _SINKS.format("".join(f"  {one.name}: default {default_text(one)}; {one.allowed}\n" for one in sinks))
    description = "Predict the masks of a source's frames live and deliver them to several sinks in parallel."
    settings = parse_settings(StreamCommand, argv, "pspnet stream", description, epilog)

    # Imported here, so that --help is fast.
    from pspnet.stream.console import Console
    from pspnet.stream.streaming import is_complete, run_stream
    from pspnet.system.signals import StopRequest

    with StopRequest(_STOP_MESSAGE, _EXIT_MESSAGE, repeat_seconds=0.5) as stop:
        summary = run_stream(settings, lambda: _open_model(settings), stop.is_set, Console(settings.quiet))
    return stop.exit_code if stop else int(not is_complete(summary))


def _open_model(settings: StreamCommand) -> Model:
    if settings.endpoint is not None:
        from pspnet.stream.endpoint_model import EndpointModel
        from sagemaker_entry import EndpointPredictor

        client = EndpointPredictor(
            settings.endpoint, region=settings.region, profile=settings.profile, retries=0, timeout=30.0
        )
        names = settings.classes or ""
        classes = NAMED_CLASS_SETS.get(names) or tuple(name.strip() for name in names.split(",") if name.strip())
        return EndpointModel(client, classes, settings.jpeg_quality)
    from pspnet.stream.model import LocalModel
    from pspnet.system.device import choose_device
    from pspnet.system.precision import choose_precision

    assert settings.model is not None
    device = choose_device(settings.device)
    options = {} if settings.runtime is None else {"runtime": settings.runtime}
    dtype = choose_precision(settings.precision, device).dtype
    return LocalModel.load(settings.model, str(device), dtype=dtype, **options)
