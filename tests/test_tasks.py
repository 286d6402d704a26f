"""Tasks of lmms-eval without lmms-eval: the task file names functions that exist and score answers; score files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.tasks import local_data
from benchmarks.tasks.__main__ import score_file
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.evaluate.score_file import read_scores
from mcpmq.quantized_model import QuantizedModel

TASKS = Path(local_data.__file__).parent


class TaskLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Loader of task files: `!function MODULE.NAME` is the function, as in lmms-eval."""


def _function(loader: TaskLoader, node: yaml.ScalarNode) -> Any:
    module, _, name = str(loader.construct_scalar(node)).partition(".")
    assert (TASKS / f"{module}.py").is_file()
    return getattr(local_data, name)


TaskLoader.add_constructor("!function", _function)


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    """Return the task of the held-out set."""
    loaded: dict[str, Any] = yaml.load((TASKS / "heldout.yaml").read_text(), TaskLoader)
    return loaded


@pytest.fixture(scope="module")
def documents(task: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the documents of the data file of the task."""
    file = tmp_path_factory.mktemp("data") / task["dataset_kwargs"]["data_files"][task["test_split"]]
    local_data.main(out=file)
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_task_has_the_keys_of_lmms_eval(task: dict[str, Any]) -> None:
    """Greedy answers to documents of a local file, with one metric."""
    assert (task["task"], task["dataset_path"], task["output_type"]) == ("heldout", "json", "generate_until")
    assert task["generation_kwargs"] == {"max_new_tokens": 48, "temperature": 0}
    assert [metric["metric"] for metric in task["metric_list"]] == ["exact"]


def test_documents_are_the_samples_with_images(task: dict[str, Any], documents: list[dict[str, Any]]) -> None:
    """Image, prompt and answer are those of the held-out set, with absolute paths."""
    samples = [one for one in SampleSet.open(local_data.HELDOUT).samples if one.image]
    assert [one["id"] for one in documents] == [sample.id for sample in samples]
    first, sample = documents[0], samples[0]
    [image] = task["doc_to_visual"](first)
    assert image.mode == "RGB"
    assert Path(first["image"]).is_absolute()
    assert task["doc_to_text"](first, {}) == sample.prompt
    assert first[task["doc_to_target"]] == sample.answer


def test_answers_are_scored(task: dict[str, Any], documents: list[dict[str, Any]]) -> None:
    """An answer equal to the expected one has the score 1; blanks around it are ignored."""
    answer = documents[0]["answer"]

    assert task["process_results"](documents[0], [f" {answer}\n"]) == {"exact": 1.0}
    assert task["process_results"](documents[0], [f"{answer}?"]) == {"exact": 0.0}


def test_the_script_writes_a_score_file(tiny_checkpoint: Path, tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """`mcpmq evaluate --scores` reads the scores of the original and of every artifact."""
    models, scores = [tiny_checkpoint, tiny_int4.path], [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.0}]
    (tmp_path / "scores.json").write_text(json.dumps(score_file("heldout", models, scores)))

    artifact = Artifact.open(tiny_int4.path)
    found = read_scores(tmp_path / "scores.json", Checkpoint.open(tiny_checkpoint), [artifact])

    assert found[artifact.sha256]["heldout"].scores == {"a": (1.0, 1.0), "b": (1.0, 0.0)}
