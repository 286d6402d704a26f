"""Select the device for calibration and rounding: a GPU if there is one and it is faster, else the CPU.

The CPU writes equal bytes on any number of threads. A GPU adds in another order, and can select another code where two
codes have nearly the same error.
"""

from collections import Counter

import psutil
import torch

from mcpmq.errors import DeviceError

CPU = torch.device("cpu")
SUPPORTED_DEVICES, ALL_GPUS = ("cpu", "cuda"), "cuda:all"
# The smallest checkpoint for a GPU: the time to start its kernels does not depend on the widths of matrices.
MIN_GPU_NBYTES = 500_000_000


def resolve_device(name: str | None = None, checkpoint_nbytes: int = MIN_GPU_NBYTES) -> torch.device:
    """Return the device with a name, `cpu`, `cuda` or `cuda:1`.

    Without a name it is the first GPU, if there is one and the checkpoint is so large that the GPU is faster.

    Raises:
        DeviceError: the name is not valid, or torch does not find the device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda:0") if count and checkpoint_nbytes >= MIN_GPU_NBYTES else CPU
    kind, _, index = name.partition(":")
    if kind not in SUPPORTED_DEVICES or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise DeviceError(f"`{name}` is not a device name", "use `cpu`, `cuda`, or `cuda:1` for the second GPU")
    if kind == "cuda" and int(index or 0) >= count:
        raise DeviceError(
            f"device `{name}` is not available: torch {torch.__version__} finds {count} GPUs",
            "use `cpu`, or install the build of torch for this GPU",
        )
    return CPU if kind == "cpu" else torch.device("cuda", int(index or 0))


def resolve_devices(names: str | None = None, checkpoint_nbytes: int = MIN_GPU_NBYTES) -> tuple[torch.device, ...]:
    """Return the devices with these names, separated by commas, that share the samples of a calibration.

    Without names, and with one, see `resolve_device`; `cuda:all` are all GPUs.

    Raises:
        DeviceError: a name is not valid or there twice, torch does not find the device, or one of several is the CPU.
    """
    if names == ALL_GPUS:
        resolve_device("cuda")
        names = ",".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    if names is None or "," not in names:
        return (resolve_device(names, checkpoint_nbytes),)
    devices = tuple(map(resolve_device, names.split(",")))
    if CPU in devices or len(set(devices)) < len(devices):
        raise DeviceError(f"`{names}` are not different GPUs", f"use `cuda:0,cuda:1`, or `{ALL_GPUS}`")
    return devices


def device_name(*devices: torch.device) -> str | None:
    """Return the name of a device, or of several with their numbers, for a manifest; None for the CPU."""
    if devices == (CPU,):
        return None
    names = Counter(torch.cuda.get_device_name(one) if one.type == "cuda" else str(one) for one in devices)
    return ", ".join(f"{count} x {name}" if len(devices) > 1 else name for name, count in names.items())


def progress_label(label: str, device: torch.device, count: int = 1) -> str:
    """Return a progress label with the name of a device, and the number of those that share the work.

    One CPU has no name.
    """
    return label if device == CPU and count == 1 else f"{label} on {device_name(*[device] * count)}"


def available_nbytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return int(psutil.virtual_memory().available)
