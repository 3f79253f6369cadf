"""Lambda package: the function runs from its files alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sagemaker_entry.commands import dispatch
from sagemaker_entry.pipeline.lambda_package import CODE, write_package

_ROOT = Path(__file__).resolve().parents[3]


def test_the_package_holds_the_code_and_is_reproducible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    assert dispatch(["lambda_package", "--output", str(first), "--code_only"]) == 0
    assert dispatch(["lambda_package", "--output", str(second), "--code_only"]) == 0
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as package:
        assert tuple(package.namelist()) == CODE
        assert all(info.external_attr >> 16 == 0o100644 for info in package.infolist())
    printed = capsys.readouterr().out
    assert "Next: aws s3 cp" in printed
    assert first.stat().st_size < 60_000


def test_the_template_is_written(tmp_path: Path) -> None:
    template = tmp_path / "pipeline.yaml"
    dispatch(["lambda_package", "--output", str(tmp_path / "a.zip"), "--code_only", "--template", str(template)])
    assert template.read_text() == (_ROOT / "sagemaker_entry" / "pipeline" / "pipeline_template.yaml").read_text()


def test_the_function_starts_from_the_package_alone(tmp_path: Path) -> None:
    """In another folder, without torch: handle a test event, summarise a mask, and import every file of the package."""
    write_package(tmp_path / "lambda.zip", tmp_path / "none")
    code = (
        "import sys, json\n"
        f"sys.path.insert(0, {str(tmp_path / 'lambda.zip')!r})\n"
        "import sagemaker_entry.lambda_handler, sagemaker_entry.pipeline.handler as it\n"
        "assert sagemaker_entry.lambda_handler.handler is it.handler\n"
        f"assert it.__file__.startswith({str(tmp_path)!r}), it.__file__\n"
        "import pspnet; assert pspnet.__file__.startswith(sys.path[0])\n"
        "assert it.handler({'Event': 's3:TestEvent'}, None) == {'batchItemFailures': []}\n"
        "from PIL import Image; import io\n"
        "picture = io.BytesIO(); Image.new('L', (4, 2), 3).save(picture, 'PNG')\n"
        "lines = list(it._lines(picture.getvalue(), 'masks/a.png', it._settings()))\n"
        "assert json.loads(lines[0])['classes'][0]['name'] == 'class_3', lines\n"
        "own = [m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ('pspnet', 'sagemaker_entry')]\n"
        f"assert sorted(path[len(sys.path[0]) + 1:] for path in own) == {sorted(CODE)!r}, own\n"
        "heavy = {'torch', 'torchvision', 'cv2', 'av', 'pydantic', 'albumentations', 'boto3'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_the_packages_tests_and_stubs_are_left_out(tmp_path: Path) -> None:
    for name in ("numpy/__init__.py", "numpy/tests/test_a.py", "numpy/a.pyi", "bin/f2py", "PIL/b.so"):
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    unzipped = write_package(tmp_path / "a.zip", tmp_path / "packages")
    with zipfile.ZipFile(tmp_path / "a.zip") as package:
        assert set(package.namelist()) - set(CODE) == {"numpy/__init__.py", "PIL/b.so"}
        assert unzipped == sum(info.file_size for info in package.infolist())


@pytest.mark.slow
def test_a_pip_failure_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pspnet.errors import PspnetError

    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    sentence = r"pip could not fetch numpy and pillow for arm64 and Python 3\.12: .*--code_only"
    with pytest.raises(PspnetError, match=sentence):
        dispatch(["lambda_package", "--output", str(tmp_path / "a.zip"), "--architecture", "arm64"])
    assert not (tmp_path / "a.zip").exists()
