"""Checkpoints of the hub: selection of files, revisions, continued downloads, and errors with hints."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcpmq.artifact import Artifact, SourceRecord
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError
from mcpmq.system.hub_cache import snapshot_commit
from tests.commands import Command
from tests.hub_server import Hub, Repository

SHARD = "model-00001-of-00002.safetensors"
TOKEN = "hf_secretOfTheTest"
UNREAD = {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "onnx/config.json": b"{}", "a.png": b""}


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Path) -> dict[str, bytes]:
    """The files of the tiny checkpoint, and some that are not read."""
    read = {file.name: file.read_bytes() for file in tiny_checkpoint.iterdir()}
    return read | UNREAD | {"consolidated.safetensors": b"x", "chat_templates/tools.jinja": b"", "LICENSE": b"Yes."}


def test_only_files_that_are_read_are_downloaded(hub: Hub, files: dict[str, bytes], tiny_checkpoint: Path) -> None:
    """Texts, licenses and the selected weights, but no code, pickle, image, file of a subfolder or other weights."""
    hub.add("owner/tiny", files)

    opened = Checkpoint.open("owner/tiny")

    downloaded = {file.relative_to(opened.path).as_posix() for file in opened.path.rglob("*") if file.is_file()}
    assert downloaded == files.keys() - UNREAD.keys() - {"consolidated.safetensors"}
    assert opened.sha256 == Checkpoint.open(tiny_checkpoint).sha256
    assert opened.name == "owner/tiny"


def test_code_that_config_json_refers_to_is_downloaded(hub: Hub, files: dict[str, bytes]) -> None:
    """Artifacts of the Hugging Face formats contain it."""
    config = files["config.json"].replace(b"{", b'{"auto_map": {},', 1)
    hub.add("owner/tiny", files | {"config.json": config})

    assert [file.name for file in Checkpoint.open("owner/tiny").code_files] == ["modeling.py"]


@pytest.mark.parametrize("revision", ["v1", "refs/pr/2", "commit"])
def test_a_revision_selects_a_commit(revision: str, hub: Hub, files: dict[str, bytes]) -> None:
    """A branch, a tag, or a commit; the commit is in the record of the original."""
    name = "main" if revision == "commit" else revision
    commit = hub.add("owner/tiny", files, name)
    hub.add("owner/tiny", {"config.json": b"{}"})

    opened = Checkpoint.open(f"owner/tiny@{commit if revision == 'commit' else revision}")

    assert SourceRecord.from_checkpoint(opened).revision == opened.path.name == commit


def test_local_folders_are_preferred(hub: Hub, files: dict[str, bytes], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """No request is sent for a name that exists, with or without a revision."""
    hub.add("owner/tiny", files)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "tiny").symlink_to(tiny_checkpoint)

    assert Checkpoint.open("owner/tiny").revision is None
    with pytest.raises(CheckpointError, match="`owner/tiny@v1` does not exist, but the local folder `owner` does"):
        Checkpoint.open("owner/tiny@v1")
    assert hub.requests == []


def test_an_unsupported_model_is_rejected_before_its_weights(hub: Hub, files: dict[str, bytes]) -> None:
    """The configuration is checked when it is there."""
    hub.add("owner/tiny", files | {"config.json": b'{"model_type": "unknown"}'})

    with pytest.raises(CheckpointError, match="unknown"):
        Checkpoint.open("owner/tiny")
    assert not [name for name in hub.downloads() if name.endswith(".safetensors")]


def test_pickled_weights_are_not_downloaded(hub: Hub, files: dict[str, bytes]) -> None:
    """The error names the files that are missing."""
    hub.add("owner/tiny", {name: content for name, content in files.items() if "safetensors" not in name})

    with pytest.raises(CheckpointError, match="has neither `model.safetensors` nor an index of shards") as caught:
        Checkpoint.open("owner/tiny")
    assert "pickle" in caught.value.hint
    assert "pytorch_model.bin" not in hub.downloads()


def test_an_interrupted_connection_continues_at_its_byte(hub: Hub, files: dict[str, bytes]) -> None:
    """The rest of a large file is requested once, and the file is whole."""
    hub.add("owner/tiny", files)
    large = hashlib.sha256(files[SHARD]).hexdigest()
    hub.cut_after[large] = 1000

    opened = Checkpoint.open("owner/tiny")

    assert (opened.path / SHARD).read_bytes() == files[SHARD]
    assert hub.requests.count(("GET", f"/objects/{large}")) == 2


def test_a_second_run_downloads_only_what_is_missing(hub: Hub, files: dict[str, bytes]) -> None:
    """A download that failed leaves complete files; the error has the hint to run again."""
    hub.add("owner/tiny", files)
    hub.failing["/objects/"] = 500
    with pytest.raises(CheckpointError, match="500") as caught:
        Checkpoint.open("owner/tiny")
    assert "run the command again; complete files are kept" in caught.value.hint

    hub.failing.clear()
    hub.requests.clear()
    opened = Checkpoint.open("owner/tiny")
    assert hub.downloads() == []
    assert [path for verb, path in hub.requests if verb == "GET" and path.startswith("/objects/")]

    hub.failing["/"] = 500  # the hub is down, and everything is in the cache
    assert Checkpoint.open("owner/tiny").path == opened.path


def test_a_partial_cache_without_the_hub_is_an_error(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, an incomplete snapshot is not opened."""
    hub.add("owner/tiny", files)
    hub.failing["/objects/"] = 500
    with pytest.raises(CheckpointError):
        Checkpoint.open("owner/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(CheckpointError, match="not all of its files are in the cache"):
        Checkpoint.open("owner/tiny")


def test_errors_of_the_hub_have_hints(hub: Hub, files: dict[str, bytes]) -> None:
    """Missing, private, gated, of an unknown revision, or with a token without permission."""
    hub.repositories |= {"owner/private": Repository(private=True), "owner/gated": Repository(gated=True)}
    hub.add("owner/gated", files)
    hub.failing["/api/models/owner/denied"] = 403
    expected = {
        "owner/missing": ("it does not exist, or it is private", "HF_TOKEN"),
        "owner/private": ("it does not exist, or it is private", "HF_TOKEN"),
        "owner/gated": ("access is granted by its owner only", "accept its terms"),
        "owner/gated@v9": ("`owner/gated@v9` on the hub: the revision does not exist", "branch"),
        f"owner/gated@{'a' * 40}": ("the revision does not exist", "branch"),
        "owner/denied": ("the access is not permitted", "HF_TOKEN"),
    }
    for name, (message, hint) in expected.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            Checkpoint.open(name)
        assert hint in caught.value.hint


def test_a_hub_that_cannot_be_reached_has_a_hint(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint has the variable of the address, and the way without a network."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")

    with pytest.raises(CheckpointError, match="`owner/tiny` on the hub: .*refused") as caught:
        Checkpoint.open("owner/tiny")
    assert "`HF_ENDPOINT`" in caught.value.hint
    assert "give the path of its folder" in caught.value.hint


def test_only_the_token_of_the_environment_is_sent(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stored login is not used, and a token in the variable reaches private repositories."""
    (tmp_path / "token").write_text("hf_stored")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.add("owner/public", files)
    hub.add("owner/private", files)
    hub.repositories["owner/private"].private = True
    Checkpoint.open("owner/public")
    assert hub.tokens == set()

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    Checkpoint.open("owner/private")
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_a_folder_outside_of_a_cache_has_no_commit(tmp_path: Path) -> None:
    """The name of a commit in another place means nothing."""
    (tmp_path / ("a" * 40)).mkdir()
    assert snapshot_commit(tmp_path / ("a" * 40)) is None


def test_plan_and_quantize_accept_a_hub_id(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, mcpmq: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest records the commit; neither command prints the token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = hub.add("owner/tiny", files, "v1")
    planned = mcpmq("plan", "owner/tiny", "--revision", "v1", "--recipe", "phone-int4")
    quantized = mcpmq("quantize", "owner/tiny@v1", tmp_path / "out", "--recipe", "phone-int4")

    assert (planned.exit_code, quantized.exit_code) == (0, 0)
    source = Artifact.open(tmp_path / "out").manifest.source
    assert (source.name, source.revision) == ("owner/tiny", commit)
    assert TOKEN not in f"{planned}{quantized}"
    assert mcpmq("plan", "owner/tiny@v1", "--revision", "v2", "--recipe", "phone-int4").exit_code == 2


def test_the_address_of_the_hub_is_that_of_the_environment(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """A command in a process of its own reads `HF_ENDPOINT` and `HF_HOME`; errors are one message and a hint."""
    hub.add("owner/tiny", files)
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "mcpmq", "-v", "plan", "owner/tiny", "--recipe", "phone-int4", "--revision", "v9"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "`owner/tiny@v9` on the hub: the revision does not exist" in done.stderr
    assert f"Bearer {TOKEN}" in hub.tokens
    assert TOKEN not in done.stderr + done.stdout
