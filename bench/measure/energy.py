"""The energy counter of an NVIDIA GPU, through the driver's own library (NVML)."""

import ctypes

import torch


class EnergyCounter:
    """Joules that a GPU has used since its driver was loaded; silent where NVML does not answer.

    Args:
        device: of any type; only CUDA devices have a counter.
    """

    def __init__(self, device: torch.device) -> None:
        self._library: ctypes.CDLL | None = None
        self._handle = ctypes.c_void_p()
        if device.type != "cuda":
            return
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        identity = str(torch.cuda.get_device_properties(device).uuid)
        name = (identity if identity.startswith("GPU-") else f"GPU-{identity}").encode()
        if library.nvmlInit_v2() == 0 and library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._handle)) == 0:
            self._library = library

    def joules(self) -> float | None:
        """The counter's value, or None."""
        if self._library is None:
            return None
        millijoules = ctypes.c_ulonglong()
        status = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(millijoules))
        return millijoules.value / 1000 if status == 0 else None
