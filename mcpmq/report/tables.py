"""The report in one table: a column for the original and for every artifact."""

from collections.abc import Sequence

from mcpmq.evaluate import NONSQUARE, ORIGINAL, Change, Estimate, Measurement, changes
from mcpmq.report.report import Report
from mcpmq.system.table import Row, Table, megabytes

CONTEXT = 4096  # tokens, what the size of the cache is told for
WEIGHTS = {"vision, connector": ("vision", "projector"), "language model": ("language", "embedding", "head")}


def table_of(report: Report) -> Table:
    """Bytes on disk, memory, perplexities and their differences, speed: a column for the original and each artifact."""
    names = ["original", *(entry.label for entry in report.artifacts)]
    kinds = [row for kind in report.original.kinds for row in _kind_rows(kind, report)]
    rows = [*_size_rows(report), *_memory_rows(report), *kinds, *_speed_rows(report)]
    return Table(title_of(report), names, rows, _notes(report, names))


def changes_table(earlier: Report, later: Report) -> Table | None:
    """What changed of the artifacts that both reports have; None where they share none."""
    before = {entry.label: entry for entry in earlier.artifacts}
    shared = [(before[entry.label], entry) for entry in later.artifacts if entry.label in before]
    if not shared:
        return None
    found = [changes(a.measurement.samples, b.measurement.samples, ORIGINAL) for a, b in shared]
    rows = [row for kind in later.original.kinds for row in _change_rows(kind, [one[kind] for one in found])]
    sizes = [(a.measurement.nbytes, b.measurement.nbytes) for a, b in shared]
    rows.append(("all files, %", [f"{(b / a - 1) * 100:+.2f}" for a, b in sizes]))
    notes = ["±: half of the 95 % interval; paired by token, over the same bootstrap resamples"]
    return Table("What changed from the first to the second", [entry.label for _, entry in shared], rows, notes)


def _change_rows(kind: str, changed: Sequence[Change]) -> list[Row]:
    return [
        (f"{kind} perplexity, %", [_share(one.perplexity_ratio, -1) for one in changed]),
        ("  KL divergence, mnat", [_thousandths(one.kl_divergence_increase, "+") for one in changed]),
        ("  same likeliest token, %", [_share(one.top_1_agreement_change, 0, "+") for one in changed]),
        ("  answers word for word, %", [_share(one.exact_match_change, 0, "+") for one in changed]),
    ]


def title_of(report: Report) -> str:
    """What was measured on what."""
    on = report.measured_on
    whose = "samples held out from" if on.held_out_from_calibration else "samples of"
    control = ", images shuffled" * on.images_shuffled + ", images cut by llama.cpp itself" * on.cut_by_engine
    return f"{report.checkpoint.name} on {on.samples} {whose} {on.name}{control}"


def _all(report: Report) -> list[Measurement]:
    return [report.original, *(entry.measurement for entry in report.artifacts)]


def _size_rows(report: Report) -> list[Row]:
    sizes = [_grouped(one.nbytes_by_component) for one in _all(report)]
    rows = [(f"{name}, MB", [_megabytes(size[name]) for size in sizes]) for name in sizes[0]]
    totals = [one.nbytes for one in _all(report)]
    shares = [f"{total / totals[0] * 100:.1f}" for total in totals]
    bits = ["", *(f"{entry.weights.bits_per_weight:.2f}" for entry in report.artifacts)]
    whole = ("all files, MB", [_megabytes(total) for total in totals])
    return [*rows, whole, ("  % of the original", shares), ("  bits per weight", bits)]


def _grouped(sizes: dict[str, int]) -> dict[str, int]:
    # A format may put components together, `vision+projector`: then the first says where they belong.
    groups = dict.fromkeys((*WEIGHTS, "other files"), 0)
    for component, nbytes in sizes.items():
        first = component.partition("+")[0]
        group = next((name for name, members in WEIGHTS.items() if first in members), "other files")
        groups[group] += nbytes
    return groups


def _memory_rows(report: Report) -> list[Row]:
    machine, caches = zip(*((one.machine_dependent, one.cache_bytes_per_token) for one in _all(report)), strict=True)
    in_turn = [one.in_turn_peak_resident_bytes for one in machine]
    rows = [
        ("peak memory, MB", [_megabytes(one.peak_resident_bytes) for one in machine]),
        ("  before loading, MB", [_megabytes(one.resident_bytes_before_load) for one in machine]),
        ("  vision released before language, MB", [_megabytes(one) if one else "" for one in in_turn]),
        (
            f"KV cache of {CONTEXT:,} tokens, computed, MB",
            [_megabytes(one * CONTEXT) if one else "" for one in caches],
        ),
    ]
    return [row for row in rows if any(row[1])]


def _kind_rows(kind: str, report: Report) -> list[Row]:
    results = [one.kinds[kind] for one in _all(report)]
    found = [None, *(entry.differences[kind] for entry in report.artifacts)]
    rows = [
        (f"{kind} perplexity", [_plain(one.perplexity) for one in results]),
        ("  change, %", [_share(one.perplexity_ratio, -1) if one else "" for one in found]),
        ("  KL divergence, mnat", [_thousandths(one.kl_divergence) if one else "" for one in found]),
        ("  same likeliest token, %", [_share(one.top_1_agreement) if one else "" for one in found]),
        ("  answers word for word, %", [_share(one.exact_match) for one in results]),
    ]
    return rows[:2] + _quantization_rows(kind, report) + rows[2:]


def _quantization_rows(kind: str, report: Report) -> list[Row]:
    """What of the change is not the engine's, where that was asked."""
    found = [None, *((entry.by_quantization or {}).get(kind) for entry in report.artifacts)]
    if not any(found):
        return []
    return [("  by quantization alone, %", [_share(one.perplexity_ratio, -1) if one else "" for one in found])]


def _speed_rows(report: Report) -> list[Row]:
    machine = [one.machine_dependent for one in _all(report)]
    phases = [one.phases for one in machine]
    return [
        ("time to load *, s", [f"{one.load_seconds:.2f}" for one in machine]),
        ("speed *, tokens/s", [f"{one.tokens_per_second:,.0f}" for one in machine]),
        ("  a slice of an image *, s", [f"{one.encode_seconds_per_slice:.3f}" if one else "" for one in phases]),
        ("  prompt *, tokens/s", [f"{one.prefill_tokens_per_second:,.0f}" if one else "" for one in phases]),
        ("  answer *, tokens/s", [f"{one.decode_tokens_per_second:,.0f}" if one else "" for one in phases]),
    ]


def _notes(report: Report, columns: Sequence[str]) -> list[str]:
    where = report.environment
    told = [
        "of the answers' tokens, given the same pixels and tokens; KL divergence: of the original from the artifact, in"
        " thousandths of a nat",
        "answers word for word: those that greedy decoding gives exactly as they stand in the set",
        "±: half of the 95 % interval; 10,000 bootstrap resamples of the samples, differences paired by token",
        f"*: depends on the machine, here {where.machine['processor']}, threads: {where.threads}",
    ]
    if NONSQUARE in report.original.kinds:
        told.append(f"{NONSQUARE}: images that llama.cpp by itself would cut or resize in another way than published")
    if report.original.machine_dependent.reused:
        told.append("original: measured earlier by the same versions on the same inputs, and reused")
    measured = zip(columns, _all(report), strict=True)
    return told + [f"{name}: {'; '.join([one.engine, *one.notes])}" for name, one in measured]


def _megabytes(nbytes: int) -> str:
    return megabytes(nbytes).removesuffix(" MB")


def _plain(one: Estimate) -> str:
    digits = 0 if one.value >= 10_000 else 1 if one.value >= 100 else 3
    return f"{one.value:,.{digits}f} ±{one.half_width:,.{digits}f}"


def _share(one: Estimate, less: int = 0, sign: str = "") -> str:
    value, width, sign = (one.value + less) * 100, one.half_width * 100, "+" if less else sign
    digits = 2 if less and abs(value) < 10 and width < 10 else 1
    return f"{value:{sign}.{digits}f} ±{width:.{digits}f}"


def _thousandths(one: Estimate, sign: str = "") -> str:
    return f"{one.value * 1000:{sign}.1f} ±{one.half_width * 1000:.1f}"
