"""The networks of the study, usable without the rest: they know nothing of ``bench`` or ``data``.

Each family is one file; each network maps images ``[N, 3, H, W]`` to logits ``[N, classes]``.
"""

from models.convnext import convnext_tiny
from models.weights import WeightsError, load_backbone, read_state_dict

__all__ = ["WeightsError", "convnext_tiny", "load_backbone", "read_state_dict"]
