"""Reports: comparison, JSON, merging, the table."""

import json
import math
import os
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError, OutputError
from mcpmq.evaluate import Settings
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report import Report, compare, report_table, write_report
from tests.fake_reports import make_measurement, make_report
from tests.tiny import CONFIG, build_checkpoint


@pytest.fixture(scope="module")
def compared(tiny_checkpoint: Path, mixed_set: SampleSet, tiny_int4: QuantizedModel) -> Report:
    """Return the report of the tiny checkpoint and its int4 weights."""
    return compare(Checkpoint.open(tiny_checkpoint), [tiny_int4.artifact], mixed_set, Settings(threads=1))


def test_differences_are_those_of_the_two_measurements(compared: Report, mixed_set: SampleSet) -> None:
    """The perplexity ratio is the quotient of both perplexities, for every group; names and hashes are kept."""
    result = compared.artifacts[0]
    assert (result.kind, result.recipe) == ("quantized", "phone-int4")
    for group, difference in result.differences.items():
        before, after = (one.groups[group].perplexity.value for one in (compared.original, result.measurement))
        assert difference.perplexity_ratio.value == pytest.approx(after / before)
        assert difference.loss_increase.value == pytest.approx(math.log(after / before), rel=1e-5)
    assert compared.eval_set.sha256 == mixed_set.sha256
    assert not compared.eval_set.held_out_from_calibration
    assert compared.environment.threads == 1


def test_a_report_is_written_and_read(compared: Report, tmp_path: Path) -> None:
    """Writing, reading and writing again gives the same bytes; Markdown is the table of the report."""
    write_report(compared, tmp_path / "a")
    again = Report.load(tmp_path / "a")
    write_report(again, tmp_path / "b")
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "report.md").read_text() == report_table(again).to_markdown()
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["report.html", "report.json", "report.md"]


def test_results_do_not_depend_on_the_machine(
    compared: Report, tiny_checkpoint: Path, mixed_set: SampleSet, tiny_int4: QuantizedModel
) -> None:
    """A second measurement differs in `machine_dependent`, `environment` and notes only."""
    again = compare(Checkpoint.open(tiny_checkpoint), [tiny_int4.artifact], mixed_set, Settings(threads=1))

    def reproducible(report: Report) -> dict[str, object]:
        data = report.model_dump(mode="json", exclude={"environment"})
        for one in (data["original"], data["artifacts"][0]["measurement"]):
            del one["machine_dependent"], one["notes"]
        return data

    assert reproducible(again) == reproducible(compared)


def test_an_artifact_of_another_checkpoint_is_rejected(
    tiny_int4: QuantizedModel, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """The error has the names of both checkpoints."""
    other = Checkpoint.open(build_checkpoint(tmp_path / "other", CONFIG, seed=1))
    with pytest.raises(ArtifactError, match="made from `tiny`.*not from `.*other`"):
        compare(other, [tiny_int4.artifact], mixed_set, Settings(threads=1))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data | {"schema_version": 1},
        lambda data: data | {"artifacts": [{"name": "x"}]},
        lambda data: {key: value for key, value in data.items() if key != "original"},
        lambda data: data | {"surprise": 1},
        lambda data: [data],
    ],
)
def test_an_invalid_report_is_rejected(change: object, tmp_path: Path) -> None:
    """The error names the file, and the hint the command that writes a new one."""
    data = json.loads(make_report().model_dump_json())
    (tmp_path / "report.json").write_text(json.dumps(change(data)))  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=r"`.*report.json` is not a valid report") as caught:
        Report.load(tmp_path)
    assert "evaluate" in caught.value.hint


def test_a_newer_schema_version_is_rejected(tmp_path: Path) -> None:
    """The error has both versions, and the hint suggests an update."""
    (tmp_path / "report.json").write_text('{"schema_version": 99, "news": []}')
    with pytest.raises(ArtifactError, match="has schema version 99, this mcpmq reads version 2") as caught:
        Report.load(tmp_path)
    assert "update" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null"])
def test_a_file_that_is_not_json_is_rejected(content: bytes, tmp_path: Path) -> None:
    """The file is given directly, or missing in a folder."""
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="not a valid report"):
        Report.load(tmp_path / "r.json")
    with pytest.raises(ArtifactError, match=r"no `report.json` at"):
        Report.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A file in the path of the folder is an OutputError."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(make_report(), tmp_path / "file" / "folder")


def test_reports_on_one_set_are_merged() -> None:
    """The merged report has all artifacts and one original."""
    merged = Report.merge([make_report(2), make_report(1)])
    assert [result.kind for result in merged.artifacts] == ["gguf", "onnx", "gguf"]
    assert len(report_table(merged).columns) == 4


def test_reports_on_different_sets_are_not_merged() -> None:
    """The error has the names of both sets."""
    one = make_report()
    other = one.model_copy(update={"eval_set": one.eval_set.model_copy(update={"name": "easy", "sha256": "0"})})
    with pytest.raises(ArtifactError, match="`heldout`.*`easy`"):
        Report.merge([one, other])


def test_the_table_has_all_measurements() -> None:
    """A column for the original and each artifact; rows for sizes, memory, accuracy and speed."""
    table = report_table(make_report())
    rows = dict(table.rows)
    assert list(table.columns) == [
        "original",
        "gguf phone-int4",
        "onnx phone-int4",
        "onnx phone-int8",
        "gguf phone-int8",
    ]
    assert rows["total size, MB"][0] == "16.1"
    assert rows["vision and projector, MB"][0] == "7.00"
    assert rows["  % of the original"][0] == "100.0"
    measured = make_measurement(1, 0.01).groups["image"].perplexity
    divergence = make_report().artifacts[0].differences["image"].kl_divergence
    assert rows["perplexity, images"][1] == f"{measured.value:.2f} ±{measured.half_width:.2f}"
    assert next(cells for name, cells in table.rows if name == "  mean KLD, nats")[1] == (
        f"{divergence.value:.4f} ±{divergence.half_width:.4f}"
    )
    assert [name for name, _ in table.rows if name.startswith("perplexity")] == [
        "perplexity, images",
        "perplexity, engine-resized images",
        "perplexity, text",
    ]
    assert all(len(cells) == 5 for _, cells in table.rows)
    assert any("Example 1.0; a note" in note for note in table.notes)
    assert any("Example CPU" in note for note in table.notes)


def test_held_out_samples_controls_and_cache_are_reported() -> None:
    """The title has held-out samples and shuffled images, a note the cached original."""
    report = make_report(1)
    on = report.eval_set.model_copy(update={"held_out_from_calibration": True, "images_shuffled": True})
    machine = report.original.machine_dependent.model_copy(update={"from_cache": True})
    original = report.original.model_copy(update={"machine_dependent": machine})
    text = report_table(report.model_copy(update={"eval_set": on, "original": original})).to_markdown()
    assert "30 samples held out from heldout, images shuffled" in text
    assert "measured earlier" in text


def test_a_report_that_is_too_large_or_not_a_file_is_rejected(tmp_path: Path) -> None:
    """A FIFO does not block; the limit is 1 GiB."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ArtifactError, match="no `report.json`"):
        Report.load(tmp_path / "fifo")
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(ArtifactError, match="has 1,073,741,825 bytes, more than 1,073,741,824"):
        Report.load(tmp_path)
