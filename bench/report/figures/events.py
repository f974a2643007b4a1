"""The ledger's figures among TensorBoard's images."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from bench.report.figures.pictures import pictures


def write_events(results: Path) -> Path:
    """Put every figure of a ledger, attention maps too, into ``<results>/tensorboard/figures`` in place of earlier ones."""
    folder = results / "tensorboard" / "figures"
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for picture in pictures(results):
            with Image.open(picture.png) as image:
                pixels = np.asarray(image.convert("RGB"))
            tag = "/".join(part for part in (picture.profile, picture.backbone, picture.name) if part)
            writer.add_image(tag, pixels, dataformats="HWC")
    return folder
