"""Tests of serving settings: sources, validation and the number of cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from pspnet.config.command_line import parse_settings
from pspnet.errors import ConfigError
from pspnet.serving import serve_settings as settings_module
from pspnet.serving.serve_settings import ServeSettings
from pspnet.system.cpu import available_cores


def parse(*argv: str, **env: str) -> ServeSettings:
    return parse_settings(ServeSettings, argv, "pspnet serve", "", env=env)


def test_defaults() -> None:
    settings = ServeSettings()
    assert settings.model_dir == Path("/opt/ml/model")
    assert (settings.host, settings.port, settings.workers, settings.queue) == ("127.0.0.1", 8080, 1, 32)
    assert (settings.threads, settings.max_batch, settings.device) == ("auto", "auto", "auto")
    assert settings.warmup_width_height() == (480, 360)
    assert (settings.precision, settings.runtime) == ("auto", "auto")
    assert settings.request_log is True


def test_runtime_from_flag_or_variable() -> None:
    assert parse(PSPNET_RUNTIME="openvino:int8").runtime == "openvino:int8"
    assert parse("--runtime", "eager", PSPNET_RUNTIME="compile").runtime == "eager"
    with pytest.raises(ConfigError, match=r"runtime: found 'fast' .environment PSPNET_RUNTIME.; allowed: auto, eager,"):
        parse(PSPNET_RUNTIME="fast")


def test_flags_override_variables_and_variables_override_defaults() -> None:
    env = {"PSPNET_PORT": "81", "PSPNET_QUEUE": "7", "PSPNET_WARMUP_SIZE": "64X32", "PSPNET_REQUEST_LOG": "false"}
    settings = parse("m", "--port", "82", **env, PSPNET_HOST="", SM_MODEL_DIR="/s")
    assert (settings.port, settings.queue, settings.host) == (82, 7, "127.0.0.1")
    assert settings.warmup_width_height() == (64, 32)
    assert settings.request_log is False
    assert settings.model_dir == Path("m")
    assert parse(SM_MODEL_DIR="/s").model_dir == Path("/s")
    assert parse(SM_MODEL_DIR="/s", PSPNET_MODEL_DIR="/p").model_dir == Path("/p")


def test_all_problems_are_reported_with_their_source() -> None:
    flags = ["--port", "65536", "--workers=0", "--threads", "many", "--grace-seconds", "nan", "--warmup_size", "480"]
    env = {"PSPNET_DEVICE": "tpu", "PSPNET_PRECISION": "int8", "PSPNET_REQUEST_LOG": "maybe", "PSPNET_PIXELS": "all"}
    with pytest.raises(ConfigError) as caught:
        parse(*flags, "--quue", "3", "--max-batch", "zero", "--queue", "-1", **env)
    assert str(caught.value).splitlines() == [
        "The configuration has 12 problems:",
        "  quue: unknown key (flag --quue); did you mean queue?",
        "  pixels: found 'all' (environment PSPNET_PIXELS); allowed: a whole number from 1024 to 1000000000",
        "  port: found '65536' (flag --port); allowed: a whole number from 0 to 65535",
        "  workers: found '0' (flag --workers); allowed: a whole number from 1 to 64",
        "  threads: found 'many' (flag --threads); allowed: auto or a whole number from 1 to 1024",
        "  device: found 'tpu' (environment PSPNET_DEVICE); allowed: auto, cpu, cuda or cuda:N",
        "  precision: found 'int8' (environment PSPNET_PRECISION); allowed: auto, float32, bfloat16 or float16",
        "  warmup_size: found '480' (flag --warmup_size); allowed: WIDTHxHEIGHT, both from 32 to 4096, e.g. 480x360",
        "  queue: found '-1' (flag --queue); allowed: a whole number from 1 to 10000",
        "  max_batch: found 'zero' (flag --max-batch); allowed: auto or a whole number from 1 to 256",
        "  grace_seconds: found 'nan' (flag --grace-seconds); allowed: a number from 0 to 3600",
        "  request_log: found 'maybe' (environment PSPNET_REQUEST_LOG); allowed: True or False",
    ]


def test_workers_split_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "available_cores", lambda: 8)
    assert ServeSettings().threads_per_worker() == 8
    assert ServeSettings(workers=3).threads_per_worker() == 2
    assert ServeSettings(workers=9).threads_per_worker() == 1
    assert ServeSettings(workers=3, threads=5).threads_per_worker() == 5


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 16),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.max": "rubbish"}, 16),
    ],
)
def test_container_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available_cores(tmp_path) == expected
