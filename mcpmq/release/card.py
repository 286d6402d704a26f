"""The model card of a release: what it is, what it weighs, what it lost, how to run it, under which terms."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mcpmq.artifact import Artifact
from mcpmq.release.license import CARD, Terms
from mcpmq.release.record import RECORD, SUMS, ReleaseRecord
from mcpmq.report import Report, table_of
from mcpmq.system.table import megabytes

CARRIED = ("language", "datasets", "license_name", "license_link", "pipeline_tag", "base_model")  # off the original's
ORIGINAL_CARD = "ORIGINAL_README.md"


@dataclass(frozen=True, slots=True)
class Card:
    """Everything a model card is drawn from; `folders` are those of the artifacts."""

    record: ReleaseRecord
    artifacts: Sequence[Artifact]
    folders: Sequence[str]
    report: Report
    terms: Terms
    base_model: str | None

    def markdown(self) -> str:
        """Front matter as the Hugging Face hub reads it, and the text."""
        parts = [self._front_matter(), *self._introduction(), *self._files(), *self._running(), *self._origin()]
        return "\n".join(parts) + "\n"

    def _front_matter(self) -> str:
        from huggingface_hub import ModelCardData

        carried = {key: value for key, value in self.terms.card.items() if key in CARRIED and _plain(value)}
        carried.setdefault("pipeline_tag", "image-text-to-text")
        if self.base_model:
            carried |= {"base_model": self.base_model, "base_model_relation": "quantized"}
        kinds = [artifact.manifest.kind for artifact in self.artifacts]
        tags = [*kinds, "quantized", "multimodal", "mcpmq"]
        text = ModelCardData(**{**carried, "license": self.terms.licence, "tags": tags}).to_yaml()
        return f"---\n{text}\n---\n"

    def _introduction(self) -> Iterator[str]:
        yield f"# {self.record.name}\n"
        kinds = " and ".join(one.kind.upper() for one in self.record.artifacts)
        yield f"`{self.record.source.name}`, made small for phones as {kinds} by mcpmq, and measured against the"
        yield "original in the engines that run it.\n"
        yield table_of(self.report).markdown().replace("## ", "## Measured: ", 1)

    def _files(self) -> Iterator[str]:
        yield "## Files\n\n| file | bytes |\n|---|---:|"
        for name, artifact in zip(self.folders, self.artifacts, strict=True):
            for record in artifact.manifest.files:
                yield f"| `{name}/{record.path}` | {record.nbytes:,} |"
        yield f"\n`{RECORD}` and `{SUMS}` hold the SHA-256 of every file: `sha256sum --check {SUMS}`, or"
        yield "`mcpmq verify .`, which also loads the models.\n"

    def _running(self) -> Iterator[str]:
        yield "## Running it\n"
        for one, artifact in zip(self.record.artifacts, self.artifacts, strict=True):
            yield f"### {one.least_runtime}\n"
            yield from RUNNING.get(one.kind, _transformers)(one.folder, artifact)

    def _origin(self) -> Iterator[str]:
        source = self.record.source
        yield f"## Origin and licence\n\nMade from `{source.name}`, SHA-256 `{source.sha256}` of its configuration and"
        yield f"weights, {megabytes(source.nbytes)}."
        for one in self.record.artifacts:
            if one.calibrated_on:
                used = one.calibrated_on
                yield f"`{one.folder}` was rounded by what it saw of `{used.name}`: {used.samples:,} samples, SHA-256"
                yield f"`{used.sha256}`."
        yield f"\nLicence of the original, and of this release: `{self.terms.licence}`."
        if self.terms.licence_files:
            yield f"Its text goes with every copy: {', '.join(f'`{name}`' for name in self.terms.licence_files)}."
        if any(file.name == CARD for file in self.terms.files):
            yield f"Its authors' own model card: `{ORIGINAL_CARD}`."


def _plain(value: object) -> bool:
    """Words, or a list of them: nothing else of a stranger's card is passed on."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _llama_cpp(folder: str, artifact: Artifact) -> Iterator[str]:
    [sight], language = artifact.files_of("vision+projector"), artifact.files_of("language")[0]
    yield "```\nllama-mtmd-cli \\"
    yield f"  -m {folder}/{language.name} \\\n  --mmproj {folder}/{sight.name} \\"
    yield '  --image photo.jpg -p "What is in this picture?"\n```\n'
    yield "On a phone with little memory, encode the image first and free the vision encoder before the language model"
    yield "is loaded.\n"


def _onnx_runtime(folder: str, artifact: Artifact) -> Iterator[str]:
    graphs = [record.path for record in artifact.manifest.files if record.path.endswith(".onnx")]
    yield "```python\nimport onnxruntime\n"
    yield f"graphs = {graphs}"
    yield f'vision, embedding, decoder = (onnxruntime.InferenceSession("{folder}/" + graph) for graph in graphs)'
    yield "```\n\nImages become embeddings, tokens become embeddings, and the decoder reads both where they stand"
    yield "in the prompt. Every input and output says its name, type and shape (`decoder.get_inputs()`).\n"


def _transformers(folder: str, artifact: Artifact) -> Iterator[str]:
    yield f"`{folder}` is a folder that transformers loads by its path; `{folder}/README.md` says what to know then.\n"


RUNNING: dict[str, Callable[[str, Artifact], Iterator[str]]] = {"gguf": _llama_cpp, "onnx": _onnx_runtime}
