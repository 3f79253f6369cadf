"""Run mmsegmentation's PSPNet with random weights; needs mmsegmentation 1.2.2, mmcv-lite 2.1.0 and torch 2.1.

    python run_mmseg.py OUTPUT CONFIG CLASSES bgr|rgb SIZE...

CONFIG is a published one, such as pspnet_r50-d8_4xb2-80k_cityscapes-512x1024. Writes OUTPUT/iter_2.pth as mmengine's
runner saves it (weights, config, class names, log buffers with numpy numbers, an optimizer), and
OUTPUT/<height>x<width>.npz for every SIZE with `image` (uint8 RGB), `logits` and `auxiliary`. With `bgr`, the config
specifies BGR images.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch

# mmcv-lite has no compiled operators. They are not called here, but mmseg imports their names.
operators = types.ModuleType("mmcv.ops")
operators.__spec__ = importlib.machinery.ModuleSpec("mmcv.ops", None)
operators.__getattr__ = lambda name: mock.MagicMock() if not name.startswith("__") else None
sys.modules["mmcv.ops"] = operators

import mmseg  # noqa: E402
import mmseg.models  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402


def randomise(model: torch.nn.Module) -> None:
    """Set random parameters and statistics that keep activations near 1."""
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
        elif value.dim() == 4:
            value.normal_(std=float(np.sqrt(2 / value[0].numel())))
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
        else:
            value.uniform_(0.3, 0.8)


def build(name: str, classes: int, bgr: bool) -> tuple[Config, torch.nn.Module]:
    """Build the network of the published config with batch norm for one process."""
    config = Config.fromfile(Path(mmseg.__file__).parent / ".mim" / "configs" / "pspnet" / f"{name}.py")
    for part in (config.model.backbone, config.model.decode_head, config.model.auxiliary_head):
        part.norm_cfg = {"type": "BN", "requires_grad": True}
    config.model.pretrained = None
    config.model.decode_head.num_classes = config.model.auxiliary_head.num_classes = classes
    if bgr:
        config.model.data_preprocessor.bgr_to_rgb = False
        config.model.data_preprocessor.mean = [104.0, 117.0, 124.0]
    return config, MODELS.build(config.model)


def save(path: Path, config: Config, model: torch.nn.Module, classes: int) -> None:
    """Write a checkpoint like mmengine's runner."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    history = HistoryBuffer([np.float64(0.5), np.float64(0.25)], [1, 1])
    meta = {
        "cfg": config.pretty_text,
        "epoch": 0,
        "iter": 2,
        "dataset_meta": {
            "classes": tuple(f"thing {index}" for index in range(classes)),
            "palette": [[index, 2 * index, 255 - index] for index in range(classes)],
        },
    }
    message_hub = {"log_scalars": {"train/loss": history}, "runtime_info": {"loop_stage": "train"}}
    torch.save(
        {
            "meta": meta,
            "state_dict": model.state_dict(),
            "message_hub": message_hub,
            "optimizer": optimizer.state_dict(),
        },
        path,
    )


def main(output: Path, name: str, classes: int, bgr: bool, sizes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    init_default_scope("mmseg")
    config, model = build(name, classes, bgr)
    randomise(model)
    model.eval()
    save(output / "iter_2.pth", config, model, classes)
    for height, width in sizes:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)  # RGB
        # mmseg reads images as BGR; its preprocessor converts them to RGB if configured.
        inputs = model.data_preprocessor({"inputs": [image.flip(0)], "data_samples": None})["inputs"]
        with torch.no_grad():
            logits = model.encode_decode(inputs, [{"img_shape": (height, width)}])
            features = model.extract_feat(inputs)
            auxiliary = torch.nn.functional.interpolate(
                model.auxiliary_head(features), (height, width), mode="bilinear", align_corners=model.align_corners
            )
        np.savez(output / f"{height}x{width}.npz", image=image[None], logits=logits, auxiliary=auxiliary)


if __name__ == "__main__":
    _, folder, config_name, class_count, order, *texts = sys.argv
    pairs = [tuple(int(part) for part in text.split("x")) for text in texts]
    main(Path(folder), config_name, int(class_count), order == "bgr", pairs)
