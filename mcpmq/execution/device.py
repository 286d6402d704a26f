"""Where samples pass and matrices are rounded by what these show: on a graphics processor, if there is one.

The processor's bytes are the same on every number of threads. A graphics processor adds in an order of its own, and
where two codes are nearly as good it may take the other.
"""

import psutil
import torch

from mcpmq.errors import CalibrationError

CPU = torch.device("cpu")
SUPPORTED = ("cpu", "cuda")


def choose(name: str | None = None) -> torch.device:
    """The device of that name, `cpu`, `cuda` or `cuda:1`; without one the first graphics processor, if there is any.

    Raises:
        CalibrationError: the name says nothing, or the device is not there.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda:0") if there else CPU
    kind, _, number = name.partition(":")
    if kind not in SUPPORTED or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise CalibrationError(f"`{name}` is no device", "name `cpu`, `cuda`, or one of several: `cuda:1`")
    if kind == "cuda" and int(number or 0) >= there:
        raise CalibrationError(
            f"there is no `{name}`: torch {torch.__version__} finds {there} graphics processors",
            "name `cpu`, or install the build of torch for this machine's graphics processor",
        )
    return CPU if kind == "cpu" else torch.device("cuda", int(number or 0))


def name_of(device: torch.device) -> str | None:
    """What an artifact records of where it was calibrated: nothing, if on the processor."""
    if device.type == "cpu":
        return None
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def told(what: str, device: torch.device) -> str:
    """What is said of work while it goes on: where, if not on the processor, for nobody may have asked for it."""
    return what if device == CPU else f"{what} on {name_of(device)}"


def available_nbytes(device: torch.device) -> int:
    """Memory that is free there now."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return int(psutil.virtual_memory().available)
