"""The model card of a release."""

from huggingface_hub import metadata_load

from mcpmq.release.record import Release


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
