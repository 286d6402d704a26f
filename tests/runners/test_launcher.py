"""A measurement in a process of its own: what it reports, and what is said when it dies."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import TypeVar

import numpy as np
import pytest
import torch

from mcpmq.errors import EngineError
from mcpmq.families.family import Inputs
from mcpmq.quantized_model import Quantized
from mcpmq.runners.inputs_store import SampleFiles
from mcpmq.runners.launcher import Engine, run
from mcpmq.runners.torch import open_runner
from tests.loss_tools import losses_of

Item = TypeVar("Item")
RUNNER = """
import os, numpy as np
class Runner:
    notes = ()
    def run(self, samples, judge):
        for s in samples:
            rows = np.zeros((len(s.tokens) - s.answer_start, 512), np.float32)
            {before}
            yield judge(s, {rows})
            {after}
        {end}
def open_runner(path, threads):
    return Runner()
"""


@pytest.fixture
def files(tmp_path: Path, tiny_samples: list[Inputs]) -> SampleFiles:
    """The four samples on disk."""
    (tmp_path / "samples").mkdir()
    files = SampleFiles(tmp_path / "samples")
    for sample in tiny_samples:
        files.append(sample)
    return files


def pretend_engine(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: str = "pass",
    rows: str = "rows",
    after: str = "pass",
    end: str = "pass",
) -> None:
    """Put another runner in the place of the ONNX one, in child processes only."""
    (folder / "pretended.py").write_text(RUNNER.format(before=before, rows=rows, after=after, end=end))
    (folder / "sitecustomize.py").write_text(
        dedent("""
        import sys
        if "mcpmq.runners.worker" in sys.orig_argv:
            import pretended
            sys.modules["mcpmq.runners.onnx"] = pretended
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def test_a_process_gives_the_losses_of_the_runner_and_what_it_took(
    tiny_checkpoint: Path, files: SampleFiles, tiny_samples: list[Inputs]
) -> None:
    """The losses to the last bit, tokens counted, times and memory measured, notes passed on."""
    result = run("torch", tiny_checkpoint, files, threads=1)
    expected = losses_of(open_runner(tiny_checkpoint, 1), tiny_samples)
    assert [one.losses for one in result.answers] == [one.tolist() for one in expected]
    assert result.tokens == sum(len(sample.tokens) for sample in tiny_samples)
    assert 30e6 < result.resident_bytes_before_load < result.peak_resident_bytes < 4e9
    assert 0 < result.seconds < 60
    assert 0 < result.load_seconds < 60
    assert "held in memory" in result.notes[0]


def test_progress_is_told_sample_by_sample(tiny_checkpoint: Path, files: SampleFiles) -> None:
    """The caller's progress gets as many items as there are samples, and the engine's name."""
    seen: list[tuple[int, str]] = []

    def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
        for number, item in enumerate(items):
            yield item
            seen.append((number, what))

    run("torch", tiny_checkpoint, files, 1, progress)
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert "PyTorch" in seen[0][1]


def test_an_error_for_the_user_keeps_its_words_and_its_hint(tmp_path: Path, files: SampleFiles) -> None:
    """What the engine refuses is said as it said it."""
    with pytest.raises(EngineError, match=r"PyTorch: no `config.json` in") as caught:
        run("torch", tmp_path, files, 1)
    assert "checkpoint folder" in caught.value.hint


@pytest.mark.parametrize(
    ("act", "message", "hint"),
    [
        ("os.abort()", "ended by SIGABRT after 1 of 4 samples", "measure again"),
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL after 1 of 4 samples", "memory runs out"),
        ("os._exit(7)", "ended with code 7 after 1 of 4 samples", "measure again"),
        ("raise ValueError('twelve monkeys')", "(?s)ended with code 1 after 1 of 4.*ValueError: twelve monkeys", ""),
    ],
)
def test_a_crash_is_told_with_its_signal_and_last_words(
    act: str, message: str, hint: str, tmp_path: Path, files: SampleFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal's name, how far it was, what it last wrote; killed processes most likely lacked memory."""
    pretend_engine(tmp_path, monkeypatch, after=f"os.write(2, b'last words\\n'); {act}")
    with pytest.raises(EngineError, match=message) as caught:
        run("onnx", tmp_path, files, 1)
    assert "last words" in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("rows * np.nan", "`text`: the loss of token 0 is not finite"),
        ("np.where(np.arange(len(rows))[:, None] > 1, np.inf, rows)", "`text`: the loss of token 2 is not finite"),
        ("rows[:1]", "`text`: logits of 1 tokens for an answer of"),
    ],
)
def test_losses_that_cannot_be_are_refused(
    rows: str, message: str, tmp_path: Path, files: SampleFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a loss that is no number nor a missing one gets into a report."""
    pretend_engine(tmp_path, monkeypatch, rows=rows)
    with pytest.raises(EngineError, match=message):
        run("onnx", tmp_path, files, 1)


def test_an_engine_that_prints_a_lot_does_not_block(
    tmp_path: Path, files: SampleFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a pipe holds on both outputs, before, between and after the samples, and bytes that are no text."""
    noise = "os.write(1, b'\\xff noise\\n' * 20000); os.write(2, b'noise\\n' * 20000)"
    pretend_engine(tmp_path, monkeypatch, before=noise, end=noise)
    assert len(run("onnx", tmp_path, files, 1).answers) == 4


@pytest.mark.parametrize("engine", ["gguf", "onnx"])
def test_phone_engines_are_measured_without_torch(engine: Engine, tmp_path: Path) -> None:
    """Opening a runner of llama.cpp or ONNX Runtime brings no torch into the process whose memory is reported."""
    code = f"import sys, mcpmq.runners.worker, mcpmq.runners.{engine}; print('torch' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert printed.stdout.strip() == "False"


def test_peak_memory_counts_what_was_given_back(
    tmp_path: Path, files: SampleFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred megabytes touched for a moment are in the peak, and not in what was there before."""
    pretend_engine(tmp_path, monkeypatch, end="x = np.ones(25_000_000); del x")
    result = run("onnx", tmp_path, files, 1)
    assert result.peak_resident_bytes - result.resident_bytes_before_load == pytest.approx(200e6, rel=0.1)


def test_a_model_is_compared_with_what_another_one_kept(
    tmp_path: Path, files: SampleFiles, tiny_checkpoint: Path, tiny_int4: Quantized
) -> None:
    """With itself nothing differs; a quantized one diverges by what the full log-probabilities say."""
    kept = tmp_path / "kept"
    run("torch", tiny_checkpoint, files, 1, keep=kept)

    same = run("torch", tiny_checkpoint, files, 1, against={"original": kept})
    other = run("torch", tiny_int4.path, files, 1, against={"original": kept, "again": kept})

    for answer in same.answers:
        assert max(answer.compared["original"].kl_divergences) < 1e-7
        assert all(answer.compared["original"].same_top)
    plain, quantized = (plain_log_probabilities(path, files) for path in (tiny_checkpoint, tiny_int4.path))
    for answer, before, after in zip(other.answers, plain, quantized, strict=True):
        expected = (np.exp(before) * (before - after)).sum(-1)
        np.testing.assert_allclose(answer.compared["original"].kl_divergences, expected, atol=1e-6)
        assert answer.compared["original"].same_top == (before.argmax(-1) == after.argmax(-1)).tolist()
        assert answer.compared["again"] == answer.compared["original"]


def plain_log_probabilities(path: Path, samples: SampleFiles) -> list[np.ndarray]:
    """[tokens of the answer, vocabulary] in float64, by torch."""
    return list(
        open_runner(path, 1).run(
            samples, lambda _, rows: torch.from_numpy(np.stack(list(rows))).double().log_softmax(-1).numpy()
        )
    )


def test_another_vocabulary_is_refused(
    tmp_path: Path, files: SampleFiles, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divergences between different tokens mean nothing; the error has both counts."""
    kept = tmp_path / "kept"
    run("torch", tiny_checkpoint, files, 1, keep=kept)
    pretend_engine(tmp_path, monkeypatch, rows="rows[:, :500]")
    with pytest.raises(EngineError, match=r"has [\d,]+ bytes; \d+ answer tokens of a vocabulary of 500 would take"):
        run("onnx", tmp_path, files, 1, against={"original": kept})
