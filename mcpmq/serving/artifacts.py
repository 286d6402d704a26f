"""Choice of the artifact and of its engine for a folder: an artifact, a conversion, a release or a checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path

from mcpmq.artifact import MANIFEST, RELEASE_RECORD, Artifact, Manifest
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, CheckpointError
from mcpmq.families import family_named
from mcpmq.formats import FORMATS, engine_of, format_named, format_of
from mcpmq.formats.kv_cache import KvCache, check_cache
from mcpmq.release.record import Release
from mcpmq.serving.engine import ChatEngine
from mcpmq.system.inside import is_file_inside

QUANTIZED = "quantized"  # kind of an artifact, and its folder in a conversion
CONTEXT = 8192  # tokens, unless another length is requested
PREFERRED = ("gguf", "onnx", QUANTIZED, *(name for name in FORMATS if name not in ("gguf", "onnx")))
CONFIG = "config.json"
NO_HEADS = (0, 0)  # widths for engines that are rejected


def open_engine(
    path: Path,
    threads: int | None = None,
    context: int = CONTEXT,
    *,
    exact: bool = False,
    source: Path | None = None,
    adapters: Sequence[Path] = (),
    kv_cache: KvCache | None = None,
) -> ChatEngine:
    """Load the model of a folder into its engine.

    Args:
        path: An artifact, the folder of a conversion, a release, or a checkpoint, which runs in PyTorch.
        threads: Threads of the engine; by default all cores.
        context: Maximum tokens of a chat and its answer; at most those of the model.
        exact: Give llama.cpp the image slices and tokens of the original. The other engines always get them.
        source: Folder with the text files of the original, for `exact`; by default they are found beside the artifact.
        adapters: Folders of LoRA adapters, merged in this order into a checkpoint.
        kv_cache: Types of the KV cache of llama.cpp; by default F16.

    Raises:
        McpmqError: the folder has no model, a file is missing or damaged, or the engine is not installed.
    """
    threads = threads or os.cpu_count() or 1
    if is_checkpoint(path):
        from mcpmq.serving import torch

        check_cache(kv_cache, "torch", NO_HEADS)
        checkpoint = Checkpoint.open(path, adapters=adapters)
        return torch.open_engine(checkpoint.path, checkpoint.family, "torch", threads, context, adapters)
    artifact = find_artifact(path)
    check_no_adapters(artifact, adapters)
    check_artifact_cache(artifact, kv_cache)
    return _open_artifact(artifact, threads, context, source if exact else None, kv_cache, exact=exact)


def _open_artifact(
    artifact: Artifact,
    threads: int,
    context: int,
    source: Path | None,
    kv_cache: KvCache | None,
    *,
    exact: bool,
) -> ChatEngine:
    kind, family = artifact.manifest.kind, family_named(artifact.manifest.family)
    _check_files(artifact)
    if (target := format_of(kind)) is not None:
        format_named(target.name)
    if kind == "gguf":
        from mcpmq.serving import exact_gguf, gguf

        if exact:
            source = source or text_files(artifact)
            check_source(artifact, source)
            return exact_gguf.open_engine(artifact, source, threads, context, kv_cache)
        return gguf.open_engine(artifact, threads, context, kv_cache)
    if kind == "onnx":
        from mcpmq.serving import onnx

        return onnx.open_engine(artifact, threads, context)
    from mcpmq.serving import torch

    return torch.open_engine(artifact.path, family, engine_of(kind), threads, context)


def check_artifact_cache(artifact: Artifact, cache: KvCache | None) -> None:
    """Check that the engine of an artifact supports the types of the KV cache.

    Raises:
        EngineError: it does not.
        ArtifactError: the artifact is not a model.
    """
    if cache is None:
        return
    kind = artifact.manifest.kind
    if kind != "gguf":
        check_cache(cache, "torch" if kind == "imatrix" else engine_of(kind), NO_HEADS)
        return
    from mcpmq.formats.gguf.language_metadata import read_head_widths

    language, *_ = artifact.component_files("language")
    check_cache(cache, "gguf", read_head_widths(language))


def check_no_adapters(artifact: Artifact, adapters: Sequence[Path]) -> None:
    """Check that no adapter is given for an artifact, whose weights have their final values.

    Raises:
        ArtifactError: one is given.
    """
    if adapters:
        raise ArtifactError(
            f"`{artifact.path}` is an artifact: the adapter `{adapters[0]}` cannot be merged into it",
            "convert the original with `--lora`, and run the result",
        )


def _check_files(artifact: Artifact) -> None:
    """Check that the files of an artifact exist; their hashes are those of `mcpmq verify`."""
    if missing := [one.path for one in artifact.manifest.files if not is_file_inside(artifact.path, one.path)]:
        raise ArtifactError(f"`{missing[0]}` is missing from `{artifact.path}`", "copy or export the artifact again")


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a checkpoint and not an artifact."""
    return (path / CONFIG).is_file() and not (path / MANIFEST).is_file()


def find_artifact(path: Path) -> Artifact:
    """Return the artifact of a folder: itself, or of several the first of gguf, onnx, quantized and other formats.

    Raises:
        ArtifactError: the folder has no artifact that is a model.
    """
    if (path / MANIFEST).is_file():
        found = [Artifact.open(path)]
    elif (path / RELEASE_RECORD).is_file():
        found = Release.open(path).artifacts
    else:
        found = [Artifact.open(folder) for folder in _conversion_folders(path)]
    models = [artifact for artifact in found if artifact.manifest.kind in PREFERRED]
    if not models:
        raise ArtifactError(f"`{path}` has no model: {_content(path, found)}", HINT)
    return min(models, key=lambda artifact: PREFERRED.index(artifact.manifest.kind))


def _conversion_folders(path: Path) -> list[Path]:
    """Return the folders of artifacts in that of a conversion, which has one quantized model for every recipe."""
    folders = [*sorted(path.glob(f"{QUANTIZED}*")), *(path / name for name in FORMATS)]
    return [folder for folder in folders if (folder / MANIFEST).is_file()]


HINT = "give an artifact, the folder of `mcpmq convert`, a release, or a checkpoint"


def _content(path: Path, found: Sequence[Artifact]) -> str:
    if found:
        return f"it is an artifact of the kind {found[0].manifest.kind}"
    if not path.is_dir():
        return "it is not a folder" if path.exists() else "it does not exist"
    names = sorted(entry.name for entry in path.iterdir())
    return f"it contains {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}" if names else "it is empty"


def text_files(artifact: Artifact) -> Path:
    """Return a folder with the tokenizer and preprocessor files of the original of a GGUF artifact.

    It is beside the artifact, or the folder of the same commit in the cache of the hub; nothing is downloaded.

    Raises:
        ArtifactError: no folder has them.
    """
    for folder in _conversion_folders(artifact.path.absolute().parent):
        if (folder / CONFIG).is_file() and _same_inputs(Artifact.open(folder).manifest, artifact.manifest):
            return folder
    if (cached := _cached_original(artifact)) is not None:
        return cached
    raise ArtifactError(
        f"neither a folder beside `{artifact.path}` nor the cache of the hub has the tokenizer and preprocessor files"
        f" of the original, `{artifact.manifest.source.name}`",
        "give the folder of the original with `--source CHECKPOINT`, or ask without `--exact`",
    )


def _same_inputs(first: Manifest, second: Manifest) -> bool:
    """Return whether two artifacts encode samples equally."""
    decided = [(one.source, one.vocabulary, one.images) for one in (first, second)]
    return decided[0] == decided[1]


def _cached_original(artifact: Artifact) -> Path | None:
    """Return the original in the cache of the hub; None without it, or if the artifact encodes samples otherwise."""
    source, is_compressed = artifact.manifest.source, artifact.manifest.vocabulary or artifact.manifest.images
    if source.revision is None or is_compressed:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(source.name, CONFIG, revision=source.revision)
    except ValueError:  # not the name of a repository
        return None
    return Path(found).parent if isinstance(found, str) else None


def check_source(artifact: Artifact, source: Path) -> None:
    """Check that the text files of a folder are of the family of an artifact.

    Raises:
        CheckpointError: they are of another family.
    """
    manifest = artifact.manifest
    family = Artifact.open(source).manifest.family if (source / MANIFEST).is_file() else _family(source)
    if family != manifest.family:
        raise CheckpointError(
            f"`{source}` is of the family `{family}`, the artifact of `{manifest.family}`",
            f"give the original of the artifact, {manifest.source.name}",
        )


def _family(source: Path) -> str:
    return Checkpoint.open(source).family.name
