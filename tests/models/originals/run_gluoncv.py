"""Run GluonCV's PSPNet with random weights; needs mxnet 1.9.1 and gluoncv 0.10.5.post0 under Python 3.8.

    python run_gluoncv.py OUTPUT BACKBONE CLASSES CROP SIZE...

Writes OUTPUT/model_algo-1 with the parameters, and OUTPUT/<height>x<width>.npz for every SIZE with `image` (uint8) and
the `logits` of predict(); for the crop size also the main and `auxiliary` logits of training.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mxnet as mx
import numpy as np
from gluoncv.model_zoo import PSPNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def randomise(net: PSPNet, random: np.random.Generator) -> None:
    """Set random parameters and statistics that keep activations near 1."""
    for name, parameter in net.collect_params().items():
        shape = parameter.shape
        if name.endswith("gamma"):
            value = random.uniform(0.3, 0.8, shape)
        elif name.endswith("running_var"):
            value = random.uniform(0.5, 2.0, shape)
        elif name.endswith(("beta", "running_mean", "bias")):
            value = 0.1 * random.standard_normal(shape)
        else:
            value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        parameter.set_data(mx.nd.array(value.astype(np.float32)))


def main(output: Path, backbone: str, classes: int, crop: int, sizes: list[tuple[int, int]]) -> None:
    random = np.random.default_rng(0)
    net = PSPNet(classes, backbone=backbone, pretrained_base=False, crop_size=crop)
    net.initialize()
    net(mx.nd.zeros((1, 3, crop, crop)))  # gives every parameter its shape
    randomise(net, random)
    net.save_parameters(str(output / "model_algo-1"))
    # predict() changes the up-sampling sizes of training, so the crop size runs first.
    for height, width in sorted(sizes, key=lambda size: size != (crop, crop)):
        image = random.integers(0, 256, (1, 3, height, width), dtype=np.uint8)
        normalised = (image / 255 - np.reshape(MEAN, (1, 3, 1, 1))) / np.reshape(STD, (1, 3, 1, 1))
        x = mx.nd.array(normalised.astype(np.float32))
        found = {"image": image}
        if (height, width) == (crop, crop):
            main_logits, auxiliary = net(x)
            found.update(trained=main_logits.asnumpy(), auxiliary=auxiliary.asnumpy())
        found["logits"] = net.predict(x).asnumpy()
        np.savez(output / f"{height}x{width}.npz", **found)


if __name__ == "__main__":
    _, folder, name, class_count, side, *texts = sys.argv
    pairs = [tuple(int(part) for part in text.split("x")) for text in texts]
    main(Path(folder), name, int(class_count), int(side), pairs)
