"""Comparing, keeping and merging reports; report.json is the truth and report.md is drawn from it."""

import json
import math
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError, OutputError
from mcpmq.evaluate import Settings
from mcpmq.quantized_model import Quantized
from mcpmq.report import Report, compare, table_of, write_report
from tests.fake_reports import invented_measurement, invented_report
from tests.tiny import CONFIG, build_checkpoint


@pytest.fixture(scope="module")
def compared(tiny_checkpoint: Path, mixed_set: CalibrationSet, tiny_int4: Quantized) -> Report:
    """The tiny checkpoint and its int4 weights, really measured."""
    return compare(Checkpoint.open(tiny_checkpoint), [tiny_int4.artifact], mixed_set, Settings(threads=1))


def test_a_comparison_pairs_the_artifact_with_the_original(compared: Report, mixed_set: CalibrationSet) -> None:
    """Ratios of perplexities are those of the two measurements, for every kind; names and hashes are kept."""
    entry = compared.artifacts[0]
    assert (entry.kind, entry.recipe) == ("quantized", "phone-int4")
    for kind, difference in entry.differences.items():
        before, after = (one.kinds[kind].perplexity.value for one in (compared.original, entry.measurement))
        assert difference.perplexity_ratio.value == pytest.approx(after / before)
        assert difference.loss_increase.value == pytest.approx(math.log(after / before), rel=1e-5)
    assert compared.measured_on.sha256 == mixed_set.sha256
    assert not compared.measured_on.held_out_from_calibration
    assert compared.environment.threads == 1


def test_json_is_read_back_whole_and_markdown_is_drawn_from_it(compared: Report, tmp_path: Path) -> None:
    """Writing, reading and writing again gives the same bytes."""
    write_report(compared, tmp_path / "a")
    again = Report.load(tmp_path / "a")
    write_report(again, tmp_path / "b")
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "report.md").read_text() == table_of(again).markdown()
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["report.html", "report.json", "report.md"]


def test_only_figures_named_so_depend_on_the_machine(
    compared: Report, tiny_checkpoint: Path, mixed_set: CalibrationSet, tiny_int4: Quantized
) -> None:
    """Measured again, everything but `machine_dependent`, `environment` and notes on memory is the same, bit by bit."""
    again = compare(Checkpoint.open(tiny_checkpoint), [tiny_int4.artifact], mixed_set, Settings(threads=1))

    def lasting(report: Report) -> dict[str, object]:
        facts = report.model_dump(mode="json", exclude={"environment"})
        for one in (facts["original"], facts["artifacts"][0]["measurement"]):
            del one["machine_dependent"], one["notes"]
        return facts

    assert lasting(again) == lasting(compared)


def test_an_artifact_of_another_checkpoint_is_refused(
    tiny_int4: Quantized, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """Its figures would be compared with a stranger's; the error names both."""
    other = Checkpoint.open(build_checkpoint(tmp_path / "other", CONFIG, seed=1))
    with pytest.raises(ArtifactError, match="made from `tiny`.*not `.*other`"):
        compare(other, [tiny_int4.artifact], mixed_set, Settings(threads=1))


@pytest.mark.parametrize(
    "damage",
    [
        lambda facts: facts | {"schema_version": 1},
        lambda facts: facts | {"artifacts": [{"name": "x"}]},
        lambda facts: {key: value for key, value in facts.items() if key != "original"},
        lambda facts: facts | {"surprise": 1},
        lambda facts: [facts],
    ],
)
def test_a_report_of_another_version_or_broken_is_refused(damage: object, tmp_path: Path) -> None:
    """The error names the file and says how to get a new one."""
    facts = json.loads(invented_report().model_dump_json())
    (tmp_path / "report.json").write_text(json.dumps(damage(facts)))  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=r"`.*report.json` is no report that this mcpmq reads") as caught:
        Report.load(tmp_path)
    assert "evaluate" in caught.value.hint


def test_a_report_of_a_newer_schema_asks_for_a_newer_mcpmq(tmp_path: Path) -> None:
    """Whatever else it holds; the error has both numbers."""
    (tmp_path / "report.json").write_text('{"schema_version": 99, "news": []}')
    with pytest.raises(ArtifactError, match="of schema 99, this mcpmq reads schema 2") as caught:
        Report.load(tmp_path)
    assert "newer" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null"])
def test_a_file_that_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    """Also when it is named directly."""
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="no report"):
        Report.load(tmp_path / "r.json")
    with pytest.raises(ArtifactError, match=r"no `report.json` at"):
        Report.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_output(tmp_path: Path) -> None:
    """And nothing is left of the attempt."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(invented_report(), tmp_path / "file" / "folder")


def test_reports_on_one_set_stand_in_one_table() -> None:
    """Their artifacts side by side, the original once."""
    merged = Report.merged([invented_report(2), invented_report(1)])
    assert [entry.kind for entry in merged.artifacts] == ["gguf", "onnx", "gguf"]
    assert len(table_of(merged).columns) == 4


def test_reports_on_different_sets_are_not_mixed() -> None:
    """Two figures that were not measured on the same answers cannot be compared."""
    one = invented_report()
    other = one.model_copy(update={"measured_on": one.measured_on.model_copy(update={"name": "easy", "sha256": "0"})})
    with pytest.raises(ArtifactError, match="`heldout`.*`easy`"):
        Report.merged([one, other])


def test_the_table_says_what_was_measured() -> None:
    """A column for the original and each artifact; sizes, memory, perplexities with errors, differences, speed."""
    table = table_of(invented_report())
    rows = dict(table.rows)
    assert list(table.columns) == [
        "original",
        "gguf phone-int4",
        "onnx phone-int4",
        "onnx phone-int8",
        "gguf phone-int8",
    ]
    assert rows["all files, MB"][0] == "16.1"
    assert rows["vision, connector, MB"][0] == "7.00"
    assert rows["  % of the original"][0] == "100.0"
    measured = invented_measurement(1, 0.01).kinds["image"].perplexity
    assert rows["image perplexity"][1] == f"{measured.value:.3f} ±{measured.half_width:.3f}"
    assert [name for name, _ in table.rows if name.endswith("perplexity")] == [
        "image perplexity",
        "nonsquare perplexity",
        "text perplexity",
    ]
    assert all(len(cells) == 5 for _, cells in table.rows)
    assert any("Pencil 1.0; drawn by hand" in note for note in table.notes)
    assert any("Abacus" in note for note in table.notes)


def test_what_was_held_out_shuffled_or_reused_is_said() -> None:
    """None of it can be read from the figures themselves."""
    report = invented_report(1)
    on = report.measured_on.model_copy(update={"held_out_from_calibration": True, "images_shuffled": True})
    machine = report.original.machine_dependent.model_copy(update={"reused": True})
    original = report.original.model_copy(update={"machine_dependent": machine})
    text = table_of(report.model_copy(update={"measured_on": on, "original": original})).markdown()
    assert "30 samples held out from heldout, images shuffled" in text
    assert "measured earlier" in text
