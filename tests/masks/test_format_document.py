"""The reader in docs/mask_format.md reads the files of this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pspnet.masks.segment import SegmentHeader
from pspnet.masks.writer import SegmentFolder, SegmentSettings
from tests.masks.mask_items import START, item, scene
from tests.masks.old_segments import old_segment

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "mask_format.md"


@pytest.mark.parametrize("old", [False, True])
def test_the_documented_reader_reads_segments(tmp_path: Path, old: bool) -> None:
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[-1]
    names: dict[str, Any] = {}
    exec(code, names)
    masks = [scene(index) for index in range(8)] + [scene(2)] * 4
    items = [item(index, mask, fragment=str(index // 3)) for index, mask in enumerate(masks)]
    if old:
        path = tmp_path / "old.pspm"
        path.write_bytes(old_segment(items, class_names=("road", "car")))
    else:
        segments = SegmentFolder(tmp_path, SegmentSettings(), SegmentHeader(0, 0, ("road", "car")))
        for masked in items:
            segments.append(masked)
        path = segments.finish() or tmp_path
    found = list(names["read_segment"](path))
    assert len(found) == 12
    for index, (frame, captured, mask, classes) in enumerate(found):
        assert (frame, captured, classes) == (index, START + index / 10, ["road", "car"])
        assert np.array_equal(mask, masks[index])
