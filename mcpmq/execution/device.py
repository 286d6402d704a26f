"""Select the device for calibration and rounding: a GPU if there is one and it is faster, else the CPU.

The CPU writes equal bytes on any number of threads. A GPU adds in another order, and can select another code where two
codes have nearly the same error.
"""

import psutil
import torch

from mcpmq.errors import DeviceError

CPU = torch.device("cpu")
SUPPORTED_DEVICES = ("cpu", "cuda")
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


def device_name(device: torch.device) -> str | None:
    """Return the device name for the manifest of an artifact; None for the CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def progress_label(label: str, device: torch.device) -> str:
    """Return a progress label with the device name, except for the CPU."""
    return label if device == CPU else f"{label} on {device_name(device)}"


def available_nbytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return int(psutil.virtual_memory().available)
