"""The model card of a release."""

from huggingface_hub import metadata_load

from mcpmq.release.card import render_card
from mcpmq.release.license import License
from mcpmq.release.record import Release
from mcpmq.report import Report


def test_the_card_has_license_usage_and_evaluation(tiny_release: Release) -> None:
    """License, language and datasets are copied from the original, other metadata is not; the text has all sections."""
    card = metadata_load(tiny_release.path / "README.md")
    text = (tiny_release.path / "README.md").read_text()

    assert card
    assert (card["license"], card["language"], card["datasets"]) == ("apache-2.0", ["en"], "mine")
    assert card["pipeline_tag"] == "image-text-to-text"
    assert {"gguf", "onnx", "mcpmq"} <= set(card["tags"])
    assert "secret" not in card
    assert "llama-mtmd-cli" in text
    assert "ONNX Runtime 1.24" in text
    assert "-m gguf/tiny-Q4_0.gguf \\\n  --mmproj gguf/mmproj-tiny-Q8_0.gguf" in text
    assert 'graphs = ["onnx/vision_encoder' in text
    assert "| `gguf/tiny-Q4_0.gguf` | " in text
    assert "`apache-2.0`, see `LICENSE`" in text
    assert "model card of the original: `ORIGINAL_README.md`" in text
    assert tiny_release.record.source.sha256 in text
    assert "## Evaluation: tiny on 30 samples" in text
    assert "perplexity, images" in text
    assert "## KV cache" in text
    assert "| q8_0 | 1.11 MB | 2.23 MB | 4.46 MB |" in text


def test_the_card_has_the_revision_of_a_downloaded_original(tiny_release: Release) -> None:
    """It is also the base model of the metadata, if none is given."""
    source = tiny_release.record.source.model_copy(update={"name": "owner/tiny", "revision": 40 * "a"})
    record = tiny_release.record.model_copy(update={"source": source})
    license, report = License("mit", {}, ()), Report.load(tiny_release.path)

    text = render_card(record, tiny_release.artifacts, report, license, None)

    assert f"original: `owner/tiny` at revision `{40 * 'a'}`, " in text
    assert "base_model: owner/tiny\n" in text
    assert "base_model: other/name" in render_card(record, tiny_release.artifacts, report, license, "other/name")
