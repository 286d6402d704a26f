"""The model card of a release."""

from huggingface_hub import metadata_load

from mcpmq.release.record import Release


def test_the_card_carries_the_terms_over_and_nothing_else(tiny_release: Release) -> None:
    """Licence, language and data sets of the original; its other fields stay behind."""
    card = metadata_load(tiny_release.path / "README.md")
    text = (tiny_release.path / "README.md").read_text()

    assert card
    assert (card["license"], card["language"], card["datasets"]) == ("apache-2.0", ["en"], "mine")
    assert card["pipeline_tag"] == "image-text-to-text"
    assert {"gguf", "onnx", "mcpmq"} <= set(card["tags"])
    assert "secret" not in card
    assert "llama-mtmd-cli" in text
    assert "ONNX Runtime 1.24" in text
    assert tiny_release.record.source.sha256 in text
    assert "image perplexity" in text
