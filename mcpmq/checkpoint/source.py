"""The folder of a checkpoint: local, or downloaded from the hub in the order in which it is checked."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.checkpoint.weight_files import WEIGHTS, shard_names
from mcpmq.errors import CheckpointError
from mcpmq.system.hub import HUB_ID, hub_requests, hub_token
from mcpmq.system.progress import Progress

# Weights and texts, never pickle.
WEIGHT_PATTERN, TEXT_PATTERNS = "*.safetensors", ["*.json", "*.txt", "*.jinja"]
CODE_PATTERN = "*.py"  # copied to artifacts if config.json refers to it, and never run
TEMPLATE_PATTERN = "chat_templates/*.jinja"
LICENSE_PATTERNS = ["README.md", "LICEN[CS]E*", "NOTICE*"]  # terms of use of the model


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """A local folder, or the folder of one commit of a repository in the cache of huggingface_hub."""

    path: Path
    repository: str | None = None  # on the hub

    def download_weights(self, config: Mapping[str, Any], progress: Progress) -> None:
        """Download the weight files that `config` and the index select, and code that `config` refers to.

        Raises:
            CheckpointError: a download fails. Complete files are kept, and another call continues.
        """
        if self.repository is None:
            return
        commit = self.path.name
        if "auto_map" in config:
            _download(self.repository, commit, [CODE_PATTERN])
        for name in progress([WEIGHTS, *shard_names(self.path, config)], "downloading weights"):
            _download(self.repository, commit, [glob.escape(name)])
        if not any(self.path.glob(WEIGHT_PATTERN)):
            raise CheckpointError(
                f"`{self.repository}@{commit}` has neither `{WEIGHTS}` nor an index of shards",
                "pickled weights can run code when opened: convert them to safetensors where you trust them, and give"
                " the path of that folder",
            )


def find_source(source: str | Path) -> CheckpointSource:
    """Return a local folder, else download the texts of `owner/name` or `owner/name@revision` from the hub.

    The texts come first, so that a checkpoint that is not supported is rejected before its weights are downloaded.

    Raises:
        CheckpointError: the folder does not exist, or the download fails.
    """
    path = Path(source)
    if path.is_dir():
        return CheckpointSource(path)
    if path.exists():
        raise CheckpointError(f"`{path}` is a file", "point at the folder that holds `config.json`")
    found = HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if found is None:
        raise CheckpointError(f"`{path}` does not exist", "point at a Hugging Face checkpoint folder")
    owner = Path(source).parts[0]
    if Path(owner).is_dir():  # a mistyped name of a local folder is not sent to the hub
        hint = f"give the path of an existing folder; `{source}` of the hub can be downloaded from another folder"
        raise CheckpointError(f"`{path}` does not exist, but the local folder `{owner}` does", hint)
    repository, revision = found["repository"], found["revision"]
    folder = _download(repository, revision, [*TEXT_PATTERNS, *LICENSE_PATTERNS])
    _download(repository, folder.name, [TEMPLATE_PATTERN], ignored=None)
    return CheckpointSource(folder, repository)


def _download(
    repository: str, revision: str | None, patterns: Sequence[str], ignored: Sequence[str] | None = ("*/*",)
) -> Path:
    """Return the folder of a commit in the cache, with all files that match the patterns."""
    from huggingface_hub import snapshot_download

    name = f"{repository}@{revision}" if revision else repository
    with hub_requests(name, CheckpointError):
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored) if ignored else None,
                token=hub_token(),
            )
        )
