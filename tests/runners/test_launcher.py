"""Measurements in a worker process: results, progress and error messages."""

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
from mcpmq.families.inputs import Inputs
from mcpmq.formats.format import Engine
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners import launcher
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.launcher import measure_sequential_peak, run_engine
from mcpmq.runners.torch import open_runner
from tests.loss_tools import answer_losses

Item = TypeVar("Item")
RUNNER = """
import os, numpy as np
class Runner:
    notes = ()
    def run(self, samples, metric):
        for s in samples:
            rows = np.zeros((len(s.tokens) - s.answer_start, 512), np.float32)
            {before}
            yield metric(s, {rows})
            {after}
        {end}
def open_runner(path, threads):
    return Runner()
def encode_images(path, threads, samples):
    {encode}
    return []
"""
MEMORY_ERROR = "ran out of memory"


@pytest.fixture
def store(tmp_path: Path, tiny_samples: list[Inputs]) -> InputsStore:
    """The four encoded samples on disk."""
    (tmp_path / "samples").mkdir()
    store = InputsStore(tmp_path / "samples")
    for sample in tiny_samples:
        store.append(sample)
    return store


def fake_engine(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: str = "pass",
    rows: str = "rows",
    after: str = "pass",
    end: str = "pass",
    encode: str = "pass",
) -> None:
    """Replace the ONNX runner, in worker processes only, by one with the given statements."""
    source = RUNNER.format(before=before, rows=rows, after=after, end=end, encode=encode)
    (folder / "fake_runner.py").write_text(source)
    (folder / "sitecustomize.py").write_text(
        dedent("""
        import sys
        if "mcpmq.runners.worker" in sys.orig_argv:
            import fake_runner
            sys.modules["mcpmq.runners.onnx"] = fake_runner
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


@pytest.mark.usefixtures("started_workers")
def test_run_engine_returns_the_losses_of_the_runner_and_its_cost(
    tiny_checkpoint: Path, store: InputsStore, tiny_samples: list[Inputs]
) -> None:
    """Losses are bit-identical to those of the runner; tokens, times, memory and notes are reported."""
    result = run_engine("torch", tiny_checkpoint, store, threads=1)
    expected = answer_losses(open_runner(tiny_checkpoint, 1), tiny_samples)
    assert [answer.losses for answer in result.answers] == [losses.tolist() for losses in expected]
    assert result.tokens == sum(len(sample.tokens) for sample in tiny_samples)
    assert 30e6 < result.baseline_rss_bytes < result.peak_rss_bytes < 4e9
    assert 0 < result.seconds < 60
    assert 0 < result.load_seconds < 60
    assert "one block is in memory at a time" in result.notes[0]


def test_progress_advances_once_per_sample(tiny_checkpoint: Path, store: InputsStore) -> None:
    """The progress callback receives one item per sample and a description with the engine name."""
    finished: list[tuple[int, str]] = []

    def progress(items: Sequence[Item], label: str) -> Iterator[Item]:
        for number, item in enumerate(items):
            yield item
            finished.append((number, label))

    run_engine("torch", tiny_checkpoint, store, 1, progress)
    assert [number for number, _ in finished] == [0, 1, 2, 3]
    assert "PyTorch" in finished[0][1]


@pytest.mark.usefixtures("started_workers")
def test_user_error_keeps_its_message_and_hint(tmp_path: Path, store: InputsStore) -> None:
    """The error of the engine is raised again, with the engine name in front."""
    with pytest.raises(EngineError, match=r"PyTorch: no `config.json` in") as caught:
        run_engine("torch", tmp_path, store, 1)
    assert "checkpoint folder" in caught.value.hint


@pytest.mark.parametrize(
    ("statement", "message", "hint"),
    [
        ("os.abort()", "ended by SIGABRT after 1 of 4 samples", "measure again"),
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL after 1 of 4 samples", MEMORY_ERROR),
        ("os._exit(7)", "ended with code 7 after 1 of 4 samples", "measure again"),
        ("raise ValueError('twelve monkeys')", "(?s)ended with code 1 after 1 of 4.*ValueError: twelve monkeys", ""),
    ],
)
def test_crash_is_reported_with_signal_progress_and_stderr(
    statement: str, message: str, hint: str, tmp_path: Path, store: InputsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the signal, the number of finished samples and the last stderr lines; SIGKILL hints at memory."""
    fake_engine(tmp_path, monkeypatch, after=f"os.write(2, b'last line\\n'); {statement}")
    with pytest.raises(EngineError, match=message) as caught:
        run_engine("onnx", tmp_path, store, 1)
    assert "last line" in str(caught.value)
    assert hint in caught.value.hint


def test_an_engine_that_does_not_respond_is_ended(
    tmp_path: Path, store: InputsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped worker is ended; the error has the time, which the documents give as 60 seconds, and the progress."""
    assert launcher.MAX_IDLE_SECONDS == 60
    monkeypatch.setattr(launcher, "MAX_IDLE_SECONDS", 2)
    fake_engine(tmp_path, monkeypatch, after="os.kill(os.getpid(), 19)")
    with pytest.raises(
        EngineError, match="ONNX Runtime did not respond after 1 of 4 samples: .* for 2 seconds"
    ) as caught:
        run_engine("onnx", tmp_path, store, 1)
    assert "measure again" in caught.value.hint


def test_crash_in_the_sequential_measurement_is_reported(
    tmp_path: Path, store: InputsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the stage, the signal and the last stderr lines."""
    fake_engine(tmp_path, monkeypatch, encode="os.write(2, b'last line\\n'); os.kill(os.getpid(), 9)")
    message = r"ONNX Runtime was ended by SIGKILL in the sequential memory measurement\nlast line"
    with pytest.raises(EngineError, match=message) as caught:
        measure_sequential_peak("onnx", tmp_path, store, 1)
    assert MEMORY_ERROR in caught.value.hint


def test_user_error_in_the_sequential_measurement_keeps_its_message(
    tiny_full: QuantizedModel, store: InputsStore
) -> None:
    """The error of the engine is raised again, with the engine name in front."""
    with pytest.raises(EngineError, match="ONNX Runtime: .*quantized artifact"):
        measure_sequential_peak("onnx", tiny_full.path, store, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("rows * np.nan", "`text`: the loss of token 0 is not finite"),
        ("np.where(np.arange(len(rows))[:, None] > 1, np.inf, rows)", "`text`: the loss of token 2 is not finite"),
        ("rows[:1]", "`text`: logits of 1 token for an answer of"),
    ],
)
def test_invalid_losses_are_an_error(
    rows: str, message: str, tmp_path: Path, store: InputsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A non-finite loss and a missing loss raise an error with the sample and the token."""
    fake_engine(tmp_path, monkeypatch, rows=rows)
    with pytest.raises(EngineError, match=message):
        run_engine("onnx", tmp_path, store, 1)


def test_large_output_does_not_block_the_worker(
    tmp_path: Path, store: InputsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More output than a pipe holds, on stdout and stderr, with invalid UTF-8, is drained."""
    noise = "os.write(1, b'\\xff noise\\n' * 20000); os.write(2, b'noise\\n' * 20000)"
    fake_engine(tmp_path, monkeypatch, before=noise, end=noise)
    assert len(run_engine("onnx", tmp_path, store, 1).answers) == 4


@pytest.mark.parametrize("engine", ["gguf", "onnx"])
def test_phone_engines_do_not_import_torch(engine: Engine, tmp_path: Path) -> None:
    """The memory reported for llama.cpp and ONNX Runtime does not include torch."""
    code = f"import sys, mcpmq.runners.worker, mcpmq.runners.{engine}; print('torch' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert printed.stdout.strip() == "False"


def test_peak_memory_includes_freed_memory(tmp_path: Path, store: InputsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of 200 MB that was freed is part of the peak, and not part of the baseline."""
    fake_engine(tmp_path, monkeypatch, end="x = np.ones(25_000_000); del x")
    result = run_engine("onnx", tmp_path, store, 1)
    assert result.peak_rss_bytes - result.baseline_rss_bytes == pytest.approx(200e6, rel=0.1)


def test_answers_are_compared_with_saved_logprobs(
    tmp_path: Path, store: InputsStore, tiny_checkpoint: Path, tiny_int4: QuantizedModel
) -> None:
    """The KLD of a model to itself is zero; that of a quantized model equals the KLD of full log-probabilities."""
    saved = tmp_path / "saved"
    run_engine("torch", tiny_checkpoint, store, 1, save_logprobs=saved)

    same = run_engine("torch", tiny_checkpoint, store, 1, references={"original": saved})
    other = run_engine("torch", tiny_int4.path, store, 1, references={"original": saved, "again": saved})

    for answer in same.answers:
        assert max(answer.compared["original"].kl_divergences) < 1e-7
        assert all(answer.compared["original"].top1_match)
    original, quantized = (full_logprobs(path, store) for path in (tiny_checkpoint, tiny_int4.path))
    for answer, before, after in zip(other.answers, original, quantized, strict=True):
        expected = (np.exp(before) * (before - after)).sum(-1)
        np.testing.assert_allclose(answer.compared["original"].kl_divergences, expected, atol=1e-6)
        assert answer.compared["original"].top1_match == (before.argmax(-1) == after.argmax(-1)).tolist()
        assert answer.compared["again"] == answer.compared["original"]


def full_logprobs(path: Path, samples: InputsStore) -> list[np.ndarray]:
    """Return float64 [answer tokens, vocab_size] of each sample, computed by torch."""
    return list(
        open_runner(path, 1).run(
            samples, lambda _, rows: torch.from_numpy(np.stack(list(rows))).double().log_softmax(-1).numpy()
        )
    )


def test_another_vocabulary_is_an_error(
    tmp_path: Path, store: InputsStore, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities over another vocabulary cannot be compared; the error has both sizes."""
    saved = tmp_path / "saved"
    run_engine("torch", tiny_checkpoint, store, 1, save_logprobs=saved)
    fake_engine(tmp_path, monkeypatch, rows="rows[:, :500]")
    with pytest.raises(EngineError, match=r"has [\d,]+ bytes, but \d+ answer tokens of a vocabulary of 500 take"):
        run_engine("onnx", tmp_path, store, 1, references={"original": saved})
