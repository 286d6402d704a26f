"""Calibrate on the nodes of a Ray cluster: workers have the samples, this process rounds and writes the blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mcpmq.calibrate.exchange import Exchange
from mcpmq.calibrate.memory import forward_nbytes
from mcpmq.calibrate.sequential import calibrate_sequentially
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample
from mcpmq.errors import ClusterError
from mcpmq.execution.device import CPU
from mcpmq.plan import Plan
from mcpmq.quantized_model import BlockWriter
from mcpmq.system.progress import Notify, Progress, silent
from mcpmq.system.ray_cluster import RayCluster
from mcpmq.system.temporary_folder import temporary_folder

MAX_RUNS = 3  # of a calibration whose workers die


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """The cluster of a calibration; the number of workers does not change a byte.

    address: see `RayCluster.connect`. workers: processes with samples; None for one on every node. threads: of each.
    """

    address: str
    workers: int | None = None
    threads: int = 1


def calibrate_on_cluster(
    plan: Plan,
    samples: Sequence[Sample],
    files: Mapping[str, Path],
    progress: Progress,
    write: BlockWriter,
    memory_limit: int | None,
    notify: Notify,
    options: ClusterOptions,
) -> None:
    """Write the files of all blocks that need calibration, with the bytes of `calibrate_sequentially` on the CPU.

    If a worker or its node dies, all begin again with the blocks that are finished, at most twice.

    Raises:
        ClusterError: no connection, or workers died too often.
        McpmqError: an error of `calibrate_sequentially`, in any process.
    """
    with RayCluster.connect(options.address) as cluster:
        for left in range(MAX_RUNS - 1, -1, -1):
            try:
                _calibrate(cluster, plan, samples, files, progress, write, memory_limit, options)
            except ClusterError as error:
                if not left:
                    raise
                notify(f"{error}; calibrating again from the last finished block")
            else:
                return


def _calibrate(
    cluster: RayCluster,
    plan: Plan,
    samples: Sequence[Sample],
    files: Mapping[str, Path],
    progress: Progress,
    write: BlockWriter,
    memory_limit: int | None,
    options: ClusterOptions,
) -> None:
    workers = options.workers or len(cluster.node_cores())
    resources = {"cores": options.threads, "memory": forward_nbytes(plan, len(samples), workers)}
    arguments = plan, tuple(samples), tuple(files), options.threads, _view_files(plan.checkpoint)
    exchange = cluster.run_together(calibrate_shards, arguments, workers, resources)
    try:
        calibrate_sequentially(plan, samples, files, progress, CPU, write, memory_limit, exchange)
    finally:
        cluster.stop(exchange)


def _view_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the files of a view, which are in a folder of this machine: those of structured compression."""
    if checkpoint.path == checkpoint.source.path:
        return {}
    files = (file for file in checkpoint.path.rglob("*") if file.is_file())
    return {file.relative_to(checkpoint.path).as_posix(): file.read_bytes() for file in files}


def calibrate_shards(
    exchange: Exchange,
    plan: Plan,
    samples: Sequence[Sample],
    blocks: Sequence[str],
    threads: int,
    view_files: Mapping[str, bytes],
) -> None:
    """Pass the samples of a worker through the model; the files of `blocks` are those of process 0.

    `view_files` has the contents of the files of a checkpoint that is a view, none of another one.
    """
    torch.set_num_threads(threads)
    files = {name: Path(f"{name}.safetensors") for name in blocks}
    with temporary_folder() as folder:
        for name, content in view_files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if view_files:
            plan = replace(plan, checkpoint=replace(plan.checkpoint, path=folder))
        calibrate_sequentially(plan, samples, files, silent, CPU, exchange=exchange)
