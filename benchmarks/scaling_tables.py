"""The table of the scaling model."""

from benchmarks.markdown import load_result, table, with_provenance


def scaling_table() -> str:
    """Return time, first bottleneck, traffic and memory of calibrations on several workers."""
    result = load_result("scaling")
    rows = [
        [
            *(one["model"], str(one["workers"]), f"{one['hours']:,.2f}", f"{one['speedup']:.2f}"),
            f"{one['first_bottleneck']} ({one['phase_seconds'][one['first_bottleneck']] / 3600:,.2f} h)",
            *(f"{one[name]:,.0f}" for name in ("inputs_gb", "tiles_gb", "blocks_gb")),
            *(f"{one[name]:,.1f}" for name in ("worker_gb", "root_gb")),
        ]
        for one in result["rows"]
    ]
    headings = ["model", "workers", "hours", "speedup", "first bottleneck", "inputs", "Gram tiles", "blocks"]
    note = "Sizes in GB. Computed, not measured. "
    return with_provenance(table([*headings, "worker", "process 0"], rows, 1), result, note)
