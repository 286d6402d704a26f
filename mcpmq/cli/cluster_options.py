"""The cluster that --ray, --workers and --threads select."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.calibrate.cluster import ClusterOptions


def make_cluster(address: str | None, workers: int | None, threads: int, device: str | None) -> "ClusterOptions | None":
    """Return the cluster of a calibration; None without an address.

    Raises:
        typer.BadParameter: workers without an address, or a device other than the CPU.
    """
    if address is None:
        if workers is not None:
            raise typer.BadParameter("needs --ray", param_hint="--workers")
        return None
    if device not in (None, "cpu"):
        raise typer.BadParameter(f"workers calibrate on the CPU, not on `{device}`", param_hint="--device")
    from mcpmq.calibrate.cluster import ClusterOptions

    return ClusterOptions(address, workers, threads)
