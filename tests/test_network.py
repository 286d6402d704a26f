"""No network connection is opened unless a hub id was given, in any process of a run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError

AUDIT = """
    import os, sys

    def record(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            with open(os.environ["AUDIT_LOG"], "a") as log:
                log.write(f"{event} {arguments} {sys.orig_argv}\\n")

    sys.addaudithook(record)
"""


def _traced(trace: Path) -> list[str]:
    """Return the command prefix that records system calls, or nothing if this system does not permit tracing."""
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=socket,connect,sendto,sendmsg", "-o", str(trace)]
    if shutil.which("strace") and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        return command
    return []


def test_a_run_opens_no_socket(
    tiny_exports: list[Artifact],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither Python nor a library connects, and ONNX Runtime writes nothing to ~/.cache."""
    (tmp_path / "sitecustomize.py").write_text(dedent(AUDIT))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("AUDIT_LOG", str(tmp_path / "audit"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.jsonl").write_text('{"id": "a", "prompt": "How many?", "answer": "Three."}')
    onnx = str(tiny_exports[1].path)
    command = [sys.executable, "-m", "mcpmq", "evaluate", onnx, "--against", str(tiny_checkpoint), "--no-cache"]
    command += ["--eval-set", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    subprocess.run([*_traced(tmp_path / "trace"), *command], check=True, capture_output=True)

    assert not (tmp_path / "audit").exists()
    assert [one.name for one in (tmp_path / "home").rglob("*")] == []
    if (tmp_path / "trace").exists():
        calls = (tmp_path / "trace").read_text().splitlines()
        assert [call for call in calls if "AF_INET" in call or "AF_NETLINK" in call] == []


@pytest.mark.parametrize("module", ["mcpmq", "mcpmq.cli", "mcpmq.formats.onnx.qnn", "mcpmq.runners.onnx"])
def test_telemetry_is_disabled_before_onnx_runtime_is_imported(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every import of mcpmq sets the variable, also if the environment enables telemetry."""
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    code = f"""
        import os, sys
        class Finder:
            def find_spec(self, name, *_):
                assert name != "onnxruntime" or os.environ["ORT_DISABLE_TELEMETRY"] == "1"
        sys.meta_path.insert(0, Finder())
        import {module}
        assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["HF_HUB_DISABLE_TELEMETRY"]) == ("1", "1")
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True, capture_output=True)


def test_a_mistyped_path_is_not_sent_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`folder/name` is a hub id only if no local folder has the name of the owner."""
    (tmp_path / "private").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="`private/model` does not exist, but the local folder `private` does"):
        Checkpoint.open("private/model")
