"""Published models by name: data set, architecture, scores, test protocol, file and licence of each. Imports no torch.

The PSPNets are mmsegmentation's, with the scores of its model index; FCN and DeepLabV3 are torchvision's. All take RGB
images with ImageNet's normalisation.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

_MMSEGMENTATION = "https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/"
_TORCHVISION = "https://download.pytorch.org/models/"

# Folder, rest of the file name (date and first digits of the SHA-256), mIoU in percent at a single scale and at several
# scales with flip. The folder contains backbone (b: stem conv7), output stride, crop, training steps and data set.
_PSPNETS = """\
pspnet_r50-d8_512x1024_40k_cityscapes 20200605_003338-2966598c 77.85 79.18
pspnet_r101-d8_512x1024_40k_cityscapes 20200604_232751-467e7cf4 78.34 79.74
pspnet_r50-d8_769x769_40k_cityscapes 20200606_112725-86638686 78.26 79.88
pspnet_r101-d8_769x769_40k_cityscapes 20200606_112753-61c6f5be 79.08 80.28
pspnet_r18-d8_512x1024_80k_cityscapes 20201225_021458-09ffa746 74.87 76.04
pspnet_r50-d8_512x1024_80k_cityscapes 20200606_112131-2376f12b 78.55 79.79
pspnet_r101-d8_512x1024_80k_cityscapes 20200606_112211-e1e1100f 79.76 81.01
pspnet_r18-d8_769x769_80k_cityscapes 20201225_021458-3deefc62 75.9 77.86
pspnet_r50-d8_769x769_80k_cityscapes 20200606_210121-5ccf03dd 79.59 80.69
pspnet_r101-d8_769x769_80k_cityscapes 20200606_225055-dba412fa 79.77 81.06
pspnet_r18b-d8_512x1024_80k_cityscapes 20201226_063116-26928a60 74.23 75.79
pspnet_r50b-d8_512x1024_80k_cityscapes 20201225_094315-6344287a 78.22 79.46
pspnet_r101b-d8_512x1024_80k_cityscapes 20201226_170012-3a4d38ab 79.69 80.79
pspnet_r18b-d8_769x769_80k_cityscapes 20201226_080942-bf98d186 74.92 76.9
pspnet_r50b-d8_769x769_80k_cityscapes 20201225_094316-4c643cf6 78.5 79.96
pspnet_r101b-d8_769x769_80k_cityscapes 20201226_171823-f0e7c293 78.87 80.04
pspnet_r50-d32_512x1024_80k_cityscapes 20220316_224840-9092b254 73.88 76.85
pspnet_r50b-d32_512x1024_80k_cityscapes 20220311_152152-23bcaf8c 72.61 75.51
pspnet_r50-d8_512x512_80k_ade20k 20200615_014128-15a8b914 41.13 41.94
pspnet_r101-d8_512x512_80k_ade20k 20200614_031423-b6e782f0 43.57 44.35
pspnet_r50-d8_512x512_160k_ade20k 20200615_184358-1890b0bd 42.48 43.44
pspnet_r101-d8_512x512_160k_ade20k 20200615_100650-967c316f 44.39 45.35
pspnet_r50-d8_512x512_20k_voc12aug 20200617_101958-ed5dfbd9 76.78 77.61
pspnet_r101-d8_512x512_20k_voc12aug 20200617_102003-4aef3c9a 78.47 79.25
pspnet_r50-d8_512x512_40k_voc12aug 20200613_161222-ae9c1b8c 77.29 78.48
pspnet_r101-d8_512x512_40k_voc12aug 20200613_161222-bc933b18 78.52 79.57
pspnet_r101-d8_480x480_40k_pascal_context 20200911_211210-bf0f5d7c 46.6 47.78
pspnet_r101-d8_480x480_80k_pascal_context 20200911_190530-c86d6233 46.03 47.15
pspnet_r101-d8_480x480_40k_pascal_context_59 20210416_114524-86d44cd4 52.02 53.54
pspnet_r101-d8_480x480_80k_pascal_context_59 20210416_114418-fa6caaa2 52.47 53.99
pspnet_r50-d8_512x512_4x4_20k_coco-stuff10k 20210820_203258-b88df27f 35.69 36.62
pspnet_r101-d8_512x512_4x4_20k_coco-stuff10k 20210820_232135-76aae482 37.26 38.52
pspnet_r50-d8_512x512_4x4_40k_coco-stuff10k 20210821_030857-92e2902b 36.33 37.24
pspnet_r101-d8_512x512_4x4_40k_coco-stuff10k 20210821_014022-831aec95 37.76 38.86
pspnet_r50-d8_512x512_4x4_80k_coco-stuff164k 20210707_152034-0e41b2db 38.8 39.19
pspnet_r101-d8_512x512_4x4_80k_coco-stuff164k 20210707_152034-7eb41789 40.34 40.79
pspnet_r50-d8_512x512_4x4_160k_coco-stuff164k 20210707_152004-51276a57 39.64 39.97
pspnet_r101-d8_512x512_4x4_160k_coco-stuff164k 20210707_152004-4af9621b 41.28 41.66
pspnet_r50-d8_512x512_4x4_320k_coco-stuff164k 20210707_152004-be9610cc 40.53 40.75
pspnet_r101-d8_512x512_4x4_320k_coco-stuff164k 20210707_152004-72220c60 41.95 42.42
pspnet_r18-d8_512x512_80k_loveda 20211105_052100-b97697f1 48.62 47.57
pspnet_r50-d8_512x512_80k_loveda 20211104_155728-88610f9f 50.46 50.19
pspnet_r101-d8_512x512_80k_loveda 20211104_153212-1c06c6a8 51.86 51.34
pspnet_r18-d8_4x4_512x512_80k_potsdam 20211220_125612-7cd046e1 77.09 78.3
pspnet_r50-d8_4x4_512x512_80k_potsdam 20211219_043541-2dd5fe67 78.12 78.98
pspnet_r101-d8_4x4_512x512_80k_potsdam 20211220_125612-aed036c4 78.62 79.47
pspnet_r18-d8_4x4_512x512_80k_vaihingen 20211228_160355-52a8a6f6 71.46 73.36
pspnet_r50-d8_4x4_512x512_80k_vaihingen 20211228_160355-382f8f5b 72.36 73.75
pspnet_r101-d8_4x4_512x512_80k_vaihingen 20211231_230806-8eba0a09 72.61 74.18
pspnet_r18-d8_4x4_896x896_80k_isaid 20220110_180526-e84c0b6a 60.22 61.25
pspnet_r50-d8_4x4_896x896_80k_isaid 20220110_180629-1f21dc32 65.36 66.48
"""

# Suffix of a folder -> data set, its prefix in keys, classes, test protocol, longest and shortest side of test images.
_CONTEXT = "slide 480 stride 320, long side 520"
_SETS = {
    "cityscapes": ("Cityscapes", "cityscapes", 19, "whole, 2048x1024 (native)", 2048, 1024),
    "ade20k": ("ADE20K", "ade20k", 150, "whole, short side 512", 2048, 512),
    "voc12aug": ("Pascal VOC 2012 + Aug", "voc", 21, "whole, short side 512", 2048, 512),
    "pascal_context": ("Pascal Context", "pascal-context", 60, _CONTEXT, 520, 520),
    "pascal_context_59": ("Pascal Context 59", "pascal-context-59", 59, _CONTEXT, 520, 520),
    "coco-stuff10k": ("COCO-Stuff 10k", "coco-stuff-10k", 171, "whole, short side 512", 2048, 512),
    "coco-stuff164k": ("COCO-Stuff 164k", "coco-stuff-164k", 171, "whole, short side 512", 2048, 512),
    "loveda": ("LoveDA", "loveda", 7, "whole, 1024x1024 (native)", 1024, 1024),
    "potsdam": ("Potsdam", "potsdam", 6, "whole, 512x512", 512, 512),
    "vaihingen": ("Vaihingen", "vaihingen", 6, "whole, 512x512", 512, 512),
    "isaid": ("iSAID", "isaid", 16, "whole, 896x896", 896, 896),
}
_FOLDER = re.compile(r"pspnet_r(\d+)(b?)-d(\d+)_(?:4x4_)?(\d+x\d+)_(?:4x4_)?(\d+k)_(.+)")
# Parameters without those of the classes, and those of each class, with stem deep-narrow and the auxiliary head.
_PARAMETERS = {"resnet-18": (12786400, 194), "resnet-50": (48960864, 770), "resnet-101": (67952992, 770)}
_LESS_IN_CONV7 = 19232

# torchvision's COCO_WITH_VOC_LABELS_V1: name, rest of the file name, mIoU, parameters.
_OTHERS = (
    ("fcn_resnet50", "coco-1167a1af", 60.5, 35322218),
    ("fcn_resnet101", "coco-7ecb50ca", 63.7, 54314346),
    ("deeplabv3_resnet50", "coco-cd0a2569", 66.4, 42004074),
    ("deeplabv3_resnet101", "coco-586e9e4e", 67.4, 60996202),
)


@dataclass(frozen=True)
class PublishedModel:
    """A published file and the model it holds.

    Attributes:
        class_names: name of a set in pspnet.classes; None for the names in the file.
        crop: height x width of the training crops.
        protocol: whole images or sliding windows, and the size of the test images, of both scores.
        test_size: (longest, shortest) side: test images are scaled to fit, keeping their aspect ratio; the longest may
            be None.
        miou: in percent, at a single scale.
        miou_multi_scale: in percent, at several scales with mirror images; None if not published.
        parameters: with the auxiliary head.
        file: path under `base_url`; ends in the first eight digits of the SHA-256.
    """

    key: str
    algorithm: str
    dataset: str
    class_names: str | None
    num_classes: int
    backbone: str
    stem: str
    output_stride: int
    align_corners: bool
    crop: str
    protocol: str
    test_size: tuple[int | None, int]
    miou: float
    miou_multi_scale: float | None
    parameters: int
    program: str
    base_url: str
    file: str
    licence: str

    @property
    def sha256_prefix(self) -> str:
        return self.file[:-4].rsplit("-", 1)[1]

    @property
    def architecture(self) -> dict[str, object]:
        """The arguments of build_algorithm that the table knows."""
        known: dict[str, object] = {"num_classes": self.num_classes, "backbone": self.backbone}
        if self.algorithm == "psp":
            known.update(stem=self.stem, output_stride=self.output_stride, align_corners=self.align_corners)
        return known


def _read_pspnets() -> Iterator[PublishedModel]:
    for row in _PSPNETS.splitlines():
        folder, rest, miou, miou_multi_scale = row.split()
        match = _FOLDER.fullmatch(folder)
        assert match is not None
        depth, plain, stride, crop, steps, suffix = match.groups()
        dataset, prefix, num_classes, protocol, longest, shortest = _SETS[suffix]
        backbone, stem = f"resnet-{depth}", "conv7" if plain else "deep-narrow"
        key = f"{prefix}-r{depth}{plain}{'' if stride == '8' else '-d' + stride}-{steps}"
        large = crop == "769x769"
        if large:
            key, protocol, longest, shortest = f"{key}-769", "slide 769 stride 513, 2049x1025", 2049, 1025
        base, per_class = _PARAMETERS[backbone]
        parameters = base + per_class * num_classes - (_LESS_IN_CONV7 if plain else 0)
        yield PublishedModel(
            key, "psp", dataset, prefix if prefix in ("voc", "cityscapes", "ade20k") else None, num_classes, backbone,
            stem, int(stride), large, crop, protocol, (longest, shortest), float(miou), float(miou_multi_scale),
            parameters, "mmsegmentation", _MMSEGMENTATION, f"{folder}/{folder}_{rest}.pth", "Apache-2.0",
        )  # fmt: skip


def _read_others() -> Iterator[PublishedModel]:
    for key, rest, miou, parameters in _OTHERS:
        network, backbone = key.split("_")
        yield PublishedModel(
            key, "fcn" if network == "fcn" else "deeplab", "COCO, VOC's classes", "voc", 21,
            backbone.replace("resnet", "resnet-"), "conv7", 8, False, "480x480", "whole, short side 520", (None, 520),
            miou, None, parameters, "torchvision", _TORCHVISION, f"{key}_{rest}.pth", "BSD-3-Clause",
        )  # fmt: skip


MODELS = {model.key: model for model in (*_read_pspnets(), *_read_others())}
"""Published models by key."""

ALIASES: dict[str, str] = {}
"""Short names, such as voc-r50: the best model of a data set and backbone, of those tested on whole images if any."""
for _model in sorted(MODELS.values(), key=lambda model: (model.protocol.startswith("whole"), model.miou)):
    _match = re.match(r"(.+-r\d+)-\d+k", _model.key)  # neither b nor d32
    if _match:
        ALIASES[_match[1]] = _model.key


def find_published(name: str) -> PublishedModel | None:
    """Return the published model of a key or an alias, None for other names."""
    return MODELS.get(ALIASES.get(name, name))


def name_hint(name: str) -> str:
    """Return the end of a message about an unknown name: the nearest names, or how to list them."""
    like = difflib.get_close_matches(name, [*ALIASES, *MODELS], n=3, cutoff=0.6)
    return f"did you mean {' or '.join(like)}?" if like else "`pspnet models` lists the names."
