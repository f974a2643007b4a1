"""Pretrained weights from a file, checked before use and never unpickled as code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from models.errors import WeightsError

ZIP_MAGIC = b"PK\x03\x04"
EXACT = (torch.float32, torch.float16, torch.bfloat16)  # what float32 holds without rounding


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or a ``torch.save`` file that holds tensors and nothing else.

    Memory is bounded by the size of the file, whatever its headers claim.

    Returns:
        Name to tensor, on the CPU, in the file's own dtypes.

    Raises:
        WeightsError: the file is missing or unreadable, is not a flat dict of ordinary tensors, or one holds NaN or infinity.
    """
    if not _is_file(path):
        raise WeightsError(f"weights {path.name}: expected a file, found none; check WEIGHTS")
    try:
        state = _read(path)
    except Exception as error:  # on damaged bytes the readers fail in whatever way the damage leads to
        raise WeightsError(
            f"weights {path.name}: expected safetensors or a torch.save of tensors only, "
            f"found a file that cannot be read as either ({_reason(error)})"
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights {path.name}: expected a flat dict of tensors (a state dict), found something else")
    for name in state:
        if not isinstance(name, str) or not name.isprintable():
            found = repr(name) if isinstance(name, str) else type(name).__name__
            raise WeightsError(f"weights {path.name}: expected names of parameters, found {found}")
    claimed, stored = sum(value.numel() * value.element_size() for value in state.values()), path.stat().st_size
    if claimed > stored:  # views that repeat their elements; to look at them all could take any memory and time
        raise WeightsError(f"weights {path.name}: expected {claimed:,} bytes for its tensors, found a file of {stored:,}")
    for name, tensor in state.items():
        if not _is_finite(tensor, f"weights {path.name}: {name}"):
            raise WeightsError(f"weights {path.name}: expected finite numbers, found NaN or infinity in {name}")
    return state


def _is_file(path: Path) -> bool:
    """pathlib's own ``is_file`` raises for a name that no file system takes."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            unpacked, stored = sum(member.file_size for member in archive.infolist()), path.stat().st_size
        if unpacked > stored:  # torch.save compresses nothing
            raise ValueError(f"a file of {stored:,} bytes that unpacks to {unpacked:,}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """On one line. What torch says of an unsafe pickle is left out: it advises how to load it all the same."""
    if isinstance(error, pickle.UnpicklingError):
        return "a pickle of something else, or a damaged one"
    lines = str(error).strip().splitlines()
    return "".join(filter(str.isprintable, lines[0]))[:200] if lines else type(error).__name__


def _is_finite(tensor: Tensor, place: str) -> bool:
    try:
        return bool(torch.isfinite(tensor).all())
    except (NotImplementedError, RuntimeError) as error:  # sparse, quantised, of 8 bits or fewer, or without storage
        found = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise WeightsError(f"{place}: expected an ordinary tensor of numbers, found {found}") from error


def load_backbone(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy ``state`` into a ConvNeXt, all but the classifying linear layer and inserted attention, which keep their fresh weights.

    Values are converted to the network's dtype, which changes none of them.

    Args:
        network: the network to fill, in place.
        state: what :func:`read_state_dict` gave; its classifier may have any number of classes.

    Raises:
        WeightsError: a tensor is missing, has another shape, has a dtype that float32 cannot hold exactly, or has no counterpart in
            the network; the network is unchanged.
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
        if source[name].dtype not in EXACT:
            raise WeightsError(
                f"weights: {name}: expected float32, float16 or bfloat16, found {source[name].dtype}; convert it first"
            )
    network.load_state_dict(source, strict=False)


def _is_fresh(name: str) -> bool:
    return name.startswith("classifier.2.") or ".attention." in name
