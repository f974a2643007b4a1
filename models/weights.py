"""Pretrained weights from a file, checked before use and never unpickled as code."""

import pickle
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn


class WeightsError(ValueError):
    """A weights file that is missing, damaged, unsafe or made for another network."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or a ``torch.save`` file that holds tensors and nothing else.

    Returns:
        Name to tensor, on the CPU, in the file's own dtypes.

    Raises:
        WeightsError: the file is missing or unreadable, is not a flat dict of tensors, or a tensor holds NaN or infinity.
    """
    if not path.is_file():
        raise WeightsError(f"weights {path.name}: expected a file, found none; check WEIGHTS")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise WeightsError(
            f"weights {path.name}: expected safetensors or a torch.save of tensors only, "
            f"found a file that cannot be read as either ({reason[0] if reason else type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights {path.name}: expected a flat dict of tensors (a state dict), found something else")
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"weights {path.name}: expected finite numbers, found NaN or infinity in {name}")
    return state


def load_backbone(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy ``state`` into a ConvNeXt, all but the classifying linear layer and inserted attention, which keep their fresh weights.

    Values are converted to the network's dtype.

    Args:
        network: the network to fill, in place.
        state: what :func:`read_state_dict` gave; its classifier may have any number of classes.

    Raises:
        WeightsError: a tensor is missing, has another shape, or has no counterpart in the network; the network is unchanged.
    """
    target = {name: value for name, value in network.state_dict().items() if not _is_fresh(name)}
    source = {name: value for name, value in state.items() if not _is_fresh(name)}
    if missing := sorted(target.keys() - source.keys()):
        raise WeightsError(f"weights: expected {len(target)} tensors of this network, {len(missing)} missing, first {missing[0]}")
    if surplus := sorted(source.keys() - target.keys()):
        raise WeightsError(f"weights: found {len(surplus)} tensors that this network lacks, first {surplus[0]}")
    for name, value in target.items():
        if source[name].shape != value.shape:
            found, expected = tuple(source[name].shape), tuple(value.shape)
            raise WeightsError(f"weights: {name}: expected shape {expected}, found {found}; made for another network?")
        if not source[name].is_floating_point():
            raise WeightsError(f"weights: {name}: expected floating-point numbers, found {source[name].dtype}")
    network.load_state_dict(source, strict=False)


def _is_fresh(name: str) -> bool:
    return name.startswith("classifier.2.") or ".attention." in name
