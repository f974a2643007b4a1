"""The networks of the study, usable without the rest: they know nothing of ``bench`` or ``data``.

Each family is one file; each network maps images ``[N, 3, H, W]`` to logits ``[N, classes]``, and each family's ``part_of`` sorts
its parameters' names into the parts that the training regimes freeze and release.
"""

from models import mixer, vit
from models.attention import Attention
from models.convnext import convnext_tiny
from models.weights import WeightsError, load_backbone, read_state_dict

__all__ = ["Attention", "WeightsError", "convnext_tiny", "load_backbone", "mixer", "read_state_dict", "vit"]
