"""The table of a report: a column for the original and for every artifact."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from mcpmq.evaluate import (
    NONSQUARE,
    ORIGINAL,
    Change,
    Measurement,
    changes,
    distribution_notes,
    small_group_notes,
)
from mcpmq.report.numbers import (
    megabyte_cells,
    nats_cells,
    nats_change_cells,
    perplexity_cells,
    ratio_cells,
    share_cells,
    share_change_cells,
)
from mcpmq.report.report import Report
from mcpmq.report.task_tables import SCORE, task_change_rows, task_notes, task_rows
from mcpmq.system.table import Row, Table

Result = TypeVar("Result")
KV_CACHE_TOKENS = 4096  # context of the computed KV cache size
AUDIO_GROUP = "audio and projector"
COMPONENT_GROUPS = {
    "vision and projector": ("vision", "projector"),
    AUDIO_GROUP: ("audio", "audio_projector"),
    "language model": ("language", "embedding", "head"),
}
OTHER_FILES = "other files"
IMAGE = "image"
GROUP_LABELS = {
    IMAGE: "images",
    NONSQUARE: "engine-resized images",
    "images": "several images",
    "video": "videos",
    "audio": "audio",
    "audio-image": "audio and images",
    "text": "text",
}
INTERVAL_NOTE = "±: half of the 95 % interval; 10,000 bootstrap resamples of the samples, differences paired by token"
SUMMARY_ROWS = ("total size, MB", "  bits per weight", "peak RSS, MB", "  decode *, tok/s")
DETAIL_ROWS = ("  exact match, %",)
SUMMARY_NOTE = "±: half of the 95 % interval; mean KLD: KL(original || artifact) per answer token"
ACCURACY_NOTES = (
    "accuracy: of answer tokens, given the same pixels and tokens; mean KLD: KL(original || artifact) per token",
    "exact match: answers that greedy decoding reproduces exactly",
    INTERVAL_NOTE,
)


def report_table(report: Report) -> Table:
    """Return sizes, memory, accuracy and speed of the original and all artifacts."""
    names = ["original", *(result.label for result in report.artifacts)]
    accuracy = [row for group in report.original.groups for row in _accuracy_rows(group, report)]
    rows = [*_size_rows(report), *_memory_rows(report), *accuracy, *task_rows(report), *_speed_rows(report)]
    return Table(report_title(report), names, rows, _notes(report, names))


def summary_table(report: Report) -> Table:
    """Return the most important rows of `report_table`."""
    table, group, rows = report_table(report), "", list[Row]()
    for row in table.rows:
        name = row[0]
        group = group if name.startswith(" ") else name
        minor_group = NONSQUARE in report.original.groups and group.endswith(GROUP_LABELS[NONSQUARE])
        important = group.startswith(("perplexity", SCORE)) and name not in DETAIL_ROWS and not minor_group
        if name in SUMMARY_ROWS or important:
            rows.append((name.strip() if name in SUMMARY_ROWS[3:] else name, row[1]))
    hidden = len(table.rows) - len(rows)
    notes = [
        *sample_notes(report),
        SUMMARY_NOTE,
        *task_notes(report),
        *_machine_notes(report),
        f"--all: {hidden} more rows, and notes",
    ]
    return Table(table.title, table.columns, rows, notes)


def machine_table(report: Report) -> Table:
    """Return memory and speed of the original and all artifacts."""
    names = ["original", *(result.label for result in report.artifacts)]
    return Table("Memory and speed", names, [*_memory_rows(report), *_speed_rows(report)], _machine_notes(report))


def accuracy_table(report: Report) -> Table:
    """Return sizes and accuracy of the original and all artifacts, without metrics that vary between runs."""
    names = ["original", *(result.label for result in report.artifacts)]
    accuracy = [row for group in report.original.groups for row in _accuracy_rows(group, report)]
    notes = [*sample_notes(report), *ACCURACY_NOTES, *task_notes(report), *_resizing_note(report)]
    rows = [*_size_rows(report), *accuracy, *task_rows(report)]
    return Table(report_title(report), names, rows, [*notes, *_engine_notes(report, names)])


def changes_table(earlier: Report, later: Report) -> Table | None:
    """Return the changes of the artifacts that are in both reports, or None if there are none."""
    before = {result.label: result for result in earlier.artifacts}
    shared = [(before[result.label], result) for result in later.artifacts if result.label in before]
    if not shared:
        return None
    found = [changes(a.measurement.samples, b.measurement.samples, ORIGINAL) for a, b in shared]
    rows = [
        row for group in later.original.groups for row in _change_rows(group, [by_group[group] for by_group in found])
    ]
    rows += task_change_rows(shared)
    sizes = [(a.measurement.nbytes, b.measurement.nbytes) for a, b in shared]
    rows.append(("total size, %", [f"{(b / a - 1) * 100:+.2f}" for a, b in sizes]))
    title = "Change from the first to the second report"
    return Table(title, [result.label for _, result in shared], rows, [INTERVAL_NOTE])


def _change_rows(group: str, changed: Sequence[Change]) -> list[Row]:
    return [
        (f"perplexity, {GROUP_LABELS[group]}, %", ratio_cells([one.perplexity_ratio for one in changed])),
        ("  mean KLD, nats", nats_change_cells([one.kl_divergence_increase for one in changed])),
        ("  same top-1, %", share_change_cells([one.top_1_agreement_change for one in changed])),
        ("  exact match, %", share_change_cells([one.exact_match_change for one in changed])),
    ]


def report_title(report: Report) -> str:
    """Return checkpoint, evaluation set and controls of a report as text."""
    used = report.eval_set
    samples = "samples held out from" if used.held_out_from_calibration else "samples of"
    controls = ", images shuffled" * used.images_shuffled + ", engine preprocessing" * used.engine_preprocessing
    return f"{report.checkpoint.name} on {used.samples} {samples} {used.name}{controls}"


def _measurements(report: Report) -> list[Measurement]:
    return [report.original, *(result.measurement for result in report.artifacts)]


def _size_rows(report: Report) -> list[Row]:
    sizes = [_group_sizes(one.nbytes_by_component) for one in _measurements(report)]
    shown = [name for name in sizes[0] if name != AUDIO_GROUP or any(size[name] for size in sizes)]
    rows = [(f"{name}, MB", megabyte_cells([size[name] for size in sizes])) for name in shown]
    totals = [one.nbytes for one in _measurements(report)]
    shares = [f"{total / totals[0] * 100:.1f}" for total in totals]
    bits = ["", *(f"{result.weights.bits_per_weight:.2f}" for result in report.artifacts)]
    total = ("total size, MB", megabyte_cells(totals))
    return [*rows, total, ("  % of the original", shares), ("  bits per weight", bits)]


def _group_sizes(sizes: dict[str, int]) -> dict[str, int]:
    # A format may store components together, as `vision+projector`; the first one selects the group.
    groups = dict.fromkeys((*COMPONENT_GROUPS, OTHER_FILES), 0)
    for component, nbytes in sizes.items():
        first = component.partition("+")[0]
        group = next((name for name, members in COMPONENT_GROUPS.items() if first in members), OTHER_FILES)
        groups[group] += nbytes
    return groups


def _memory_rows(report: Report) -> list[Row]:
    measurements = _measurements(report)
    machine = [one.machine_dependent for one in measurements]
    sequential = [one.sequential_peak_rss_bytes for one in machine]
    kv_cache = [one.kv_cache_bytes_per_token for one in measurements]
    rows = [
        ("peak RSS, MB", megabyte_cells([one.peak_rss_bytes for one in machine])),
        ("  baseline RSS, MB", megabyte_cells([one.baseline_rss_bytes for one in machine])),
        ("  vision freed before LM, MB", megabyte_cells(sequential)),
        (
            f"KV cache of {KV_CACHE_TOKENS:,} tokens, MB",
            megabyte_cells([one * KV_CACHE_TOKENS if one else None for one in kv_cache]),
        ),
    ]
    if any(one.kv_cache not in (None, "f16") for one in measurements):
        rows.append(("  type", [one.kv_cache or "" for one in measurements]))
    return [row for row in rows if any(row[1])]


def _accuracy_rows(group: str, report: Report) -> list[Row]:
    results = [one.groups[group] for one in _measurements(report)]
    found = [None, *(result.differences[group] for result in report.artifacts)]
    return [
        (f"perplexity, {GROUP_LABELS[group]}", perplexity_cells([one.perplexity for one in results])),
        ("  change, %", ratio_cells([one.perplexity_ratio if one else None for one in found])),
        *_engine_baseline_rows(group, report),
        ("  mean KLD, nats", nats_cells([one.kl_divergence if one else None for one in found])),
        ("  same top-1, %", share_cells([one.top_1_agreement if one else None for one in found])),
        ("  exact match, %", share_cells([one.exact_match for one in results])),
        *_vocabulary_rows(group, report),
    ]


def _vocabulary_rows(group: str, report: Report) -> list[Row]:
    """Return the differences by character, if the vocabulary of an artifact is trimmed."""
    found = [None, *((result.vocabulary or {}).get(group) for result in report.artifacts)]
    if not any(found):
        return []
    ratios = [one.character_perplexity_ratio if one else None for one in found]
    removed = [one.removed_probability if one else None for one in found]
    return [
        ("  change per character, %", ratio_cells(ratios)),
        ("  probability of removed tokens, %", share_cells(removed)),
        ("  samples with the same tokens", [f"{one.same_tokens} of {one.samples}" if one else "" for one in found]),
        (
            "  answer tokens, % of the original",
            [f"{one.answer_tokens / one.original_answer_tokens * 100:.1f}" if one else "" for one in found],
        ),
    ]


def _engine_baseline_rows(group: str, report: Report) -> list[Row]:
    """Return the change from the engine baseline, which excludes the error of the engine, if it was measured."""
    found = [None, *((result.engine_baseline_differences or {}).get(group) for result in report.artifacts)]
    if not any(found):
        return []
    return [("  change from engine baseline, %", ratio_cells([one.perplexity_ratio if one else None for one in found]))]


def _speed_rows(report: Report) -> list[Row]:
    machine = [one.machine_dependent for one in _measurements(report)]
    phases = [one.phases for one in machine]
    return [
        ("load time *, s", [f"{one.load_seconds:.2f}" for one in machine]),
        ("throughput *, tok/s", [f"{one.tokens_per_second:,.0f}" for one in machine]),
        ("  image encode *, s/slice", [f"{one.encode_seconds_per_slice:.3f}" if one else "" for one in phases]),
        ("  prefill *, tok/s", [f"{one.prefill_tokens_per_second:,.0f}" if one else "" for one in phases]),
        ("  decode *, tok/s", [f"{one.decode_tokens_per_second:,.0f}" if one else "" for one in phases]),
    ]


def _notes(report: Report, columns: Sequence[str]) -> list[str]:
    original = report.original.machine_dependent
    notes = [
        *sample_notes(report),
        *ACCURACY_NOTES,
        *task_notes(report),
        *_vocabulary_notes(report),
        "KV cache: computed from the configuration",
        *_machine_notes(report),
        *_resizing_note(report),
    ]
    if original.from_cache:
        notes.append("original: measured earlier with the same versions and inputs, and read from the cache")
    if original.cache_error:
        notes.append(f"original: the measurement is not cached: {original.cache_error}")
    return [*notes, *_engine_notes(report, columns)]


def _vocabulary_notes(report: Report) -> list[str]:
    """Return notes about the metrics of artifacts with a trimmed vocabulary."""
    if not any(result.vocabulary for result in report.artifacts):
        return []
    return [
        "trimmed vocabulary: KLD, top-1 and perplexity change on samples with the same tokens, over the kept tokens",
        "probability of removed tokens: in the original; change per character: on all samples",
    ]


def sample_notes(report: Report) -> list[str]:
    """Return notes about groups with few samples, and about calibration sets that do not represent them."""
    counts = {group: one.samples for group, one in report.original.groups.items()}
    results = report.artifacts
    klds = {group: one.kl_divergence for group, one in results[0].differences.items()} if len(results) == 1 else {}
    notes = [f"few samples: {note}" for note in small_group_notes(counts, GROUP_LABELS, klds)]
    for result in results:
        if (calibration := result.calibration_kl_divergence) is not None:
            groups = _joined_images(result.differences), _joined_images(calibration)
            found = distribution_notes(*groups, GROUP_LABELS)
            notes += [f"calibration of {result.label}: {note}" for note in found]
    return notes


def _joined_images(groups: Mapping[str, Result]) -> dict[str, Result]:
    """Return groups in which engine-resized images are images, for which those of other images take precedence."""
    images = {IMAGE: groups[NONSQUARE]} if NONSQUARE in groups else {}
    return images | {group: one for group, one in groups.items() if group != NONSQUARE}


def _machine_notes(report: Report) -> list[str]:
    environment = report.environment
    return [f"*: depends on the machine, here {environment.machine['processor']}, threads: {environment.threads}"]


def _resizing_note(report: Report) -> list[str]:
    note = f"{GROUP_LABELS[NONSQUARE]}: images that llama.cpp would slice or resize differently by itself"
    return [note] if NONSQUARE in report.original.groups else []


def _engine_notes(report: Report, columns: Sequence[str]) -> list[str]:
    measured = zip(columns, _measurements(report), strict=True)
    return [f"{name}: {'; '.join([one.engine, *one.notes])}" for name, one in measured]
