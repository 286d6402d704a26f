"""The result file: a row for every measured artifact, with its commit; a run replaces the rows that it measured.

Every row has the KL divergences of all test samples, so that any two rows are compared on the samples of both, and the
processor of the machine that measured it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.commands import RESULTS, provenance, write_result
from benchmarks.markdown import load_result
from benchmarks.peers.artifacts import HERE as TOOLS
from benchmarks.real_weights.variants import QWEN_VARIANTS, VARIANTS, WHISPER_VARIANTS
from mcpmq.evaluate import Estimate
from mcpmq.evaluate.bootstrap import CONFIDENCE, resample_counts

NAME = "real-weights"
PEERS = ("gptqmodel", "autoround", "llmcompressor")
BY_SAMPLE = "kl_divergence_by_sample"  # key of a row: the sum over the tokens of every sample, in nats

# The lists of rows of the result, and name and format of their rows in order; rows of Whisper have no format.
PARTS: Mapping[str, Sequence[tuple[str, str]]] = {
    "rows": [(one.name, name) for one in VARIANTS for name in one.formats],
    "qwen": [(one.name, name) for one in QWEN_VARIANTS for name in one.formats],
    "whisper": [(one.name, "") for one in WHISPER_VARIANTS],
}
TESTS = {"rows": "test", "qwen": "qwen_test"}  # where the facts about the test of a list are

Row = dict[str, Any]


def load() -> dict[str, Any]:
    """Return the committed result with the rows that have divergences by sample."""
    result = load_result(NAME) if (RESULTS / f"{NAME}.json").is_file() else {}
    return result | {part: [row for row in result.get(part, ()) if BY_SAMPLE in row] for part in PARTS}


def merged(rows: Sequence[Row], measured: Iterable[Row], keys: Sequence[Sequence[object]]) -> list[Row]:
    """Return rows with measured ones in their place, in the order of `keys`; rows of other keys are dropped."""
    found = {row_key(row): row for row in (*rows, *measured)}
    return [found[key] for key in map(tuple, keys) if key in found]


def row_key(row: Mapping[str, Any]) -> tuple[object, ...]:
    """Return name and format of a row, which identify it; rows of Whisper have no format."""
    return row["name"], row.get("format", "")


@dataclass(frozen=True, slots=True)
class Recorder:
    """The content of the result file, which is written again whenever rows are measured."""

    content: dict[str, Any]

    def keep(self, part: str, rows: Sequence[Row], test: Mapping[str, Any] | None = None) -> None:
        """Replace rows of a list, and the facts about its test; rows that no variant defines any more are dropped."""
        result = provenance("benchmarks.real_weights", "onnxruntime", "tokenizers", "transformers")
        measured = [row | {"processor": result["machine"]["processor"]} for row in rows]
        self.content[part] = merged(self.content[part], measured, PARTS[part])
        if test:
            self.content[TESTS[part]] = test
        result["versions"] |= tool_versions({row["tool"] for row in self.content["rows"]} & set(PEERS))
        kept = {key: self.content[key] for key in (*TESTS.values(), *PARTS) if key in self.content}
        write_result(NAME, result | kept)


def tool_versions(tools: Iterable[str]) -> dict[str, str]:
    """Return the pinned versions of other tools, by the name of their package."""
    lines = [(tool, line) for tool in tools for line in (TOOLS / "tools" / f"{tool}.txt").read_text().splitlines()]
    pins = [line.split("==") for tool, line in lines if line.lower().replace("-", "").startswith(f"{tool}==")]
    return dict(sorted(pins))


def ratio(row: Mapping[str, Any], base: Mapping[str, Any]) -> Estimate:
    """Return the ratio of the mean KL divergences of two rows over the samples of both."""
    return _ratio(row[BY_SAMPLE], base[BY_SAMPLE])


def mean(row: Mapping[str, Any], tokens: Sequence[int], samples: int) -> Estimate:
    """Return the mean KL divergence over the first samples, which have these numbers of tokens."""
    return _ratio(row[BY_SAMPLE][:samples], tokens)


def _ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Return the ratio of two sums over the samples of both; each bootstrap resample has the same samples of both."""
    count = min(len(numerators), len(denominators))
    sums, base_sums = (np.array(one[:count], np.float64) for one in (numerators, denominators))
    drawn = resample_counts(count).astype(np.float64)
    ratios = (drawn @ sums) / (drawn @ base_sums)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(sums.sum() / base_sums.sum())
    return Estimate(value=value, standard_error=float(ratios.std(ddof=1)), low=float(low), high=float(high))
