"""Push a release to a repository of the hub, in one commit with exactly its files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcpmq.errors import ReleaseError
from mcpmq.release.record import CHECKSUMS, HUB_ATTRIBUTES, RECORD, Release
from mcpmq.release.verify import verify
from mcpmq.system.hub import REPOSITORY, TOKEN_VARIABLE, hub_requests, hub_token
from mcpmq.system.progress import Progress, begin_stages, silent
from mcpmq.system.table import Row, Table

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True, slots=True)
class PushResult:
    """The files of a push, with their bytes, and its commit; a dry run has none."""

    repository: str
    files: dict[str, int]
    deleted: tuple[str, ...] = ()  # files of the previous release that this one does not have
    commit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return repository, commit and files as plain values."""
        files = [{"path": name, "nbytes": nbytes} for name, nbytes in self.files.items()]
        return {
            "repository": self.repository,
            "commit": self.commit,
            "files": files,
            "deleted": list(self.deleted),
            "nbytes": sum(self.files.values()),
        }

    def to_table(self) -> Table:
        """Return a table with a row for every file."""
        rows: list[Row] = [(name, [f"{nbytes:,}"]) for name, nbytes in self.files.items()]
        rows += [(name, ["deleted"]) for name in self.deleted]
        done = f"pushed to {self.repository}, commit {self.commit}" if self.commit else f"dry run of {self.repository}"
        return Table(done, ["bytes"], [*rows, ("all files", [f"{sum(self.files.values()):,}"])])


def push(
    release: Release, repository: str, *, private: bool = False, dry_run: bool = False, progress: Progress = silent
) -> PushResult:
    """Check the hashes of a release and push its files; the repository is created if it does not exist.

    The commit replaces an earlier release in the repository. The token is that of the environment.

    Args:
        release: The release; its engines are not loaded.
        repository: Name on the hub, `owner/name`.
        private: Create a private repository; an existing one must be private.
        dry_run: Send nothing, and return the files.
        progress: Called with the files.

    Raises:
        ReleaseError: a file changed, the name or the token is missing or not valid, the repository has files that are
            not of a release or is public in spite of `private`, or the hub rejects the push.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ReleaseError(f"`{repository}` is not a name on the hub", "give `owner/name`")
    begin_stage = begin_stages(progress, ["checking hashes", "uploading"])
    begin_stage()
    verify(release.path, 1, load=False, progress=progress)
    names = [*(record.path for record in release.record.files), RECORD, CHECKSUMS]
    files = {name: (release.path / name).stat().st_size for name in sorted(names)}
    if dry_run:
        return PushResult(repository, files)
    if not (token := hub_token()):
        raise ReleaseError("a push needs a token", f"set `{TOKEN_VARIABLE}` to a token with write access")
    begin_stage()
    with hub_requests(repository, ReleaseError):
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        parent, earlier = _check_repository(api, repository, private=private)
        deleted = tuple(sorted(set(earlier) - files.keys()))
        commit = _commit(api, release, repository, list(files), deleted, parent, progress)
    return PushResult(repository, files, deleted, commit)


def _check_repository(api: "HfApi", repository: str, *, private: bool) -> tuple[str | None, list[str]]:
    """Return the last commit, and the files of an earlier release."""
    info = api.model_info(repository)
    if private and not info.private:
        raise ReleaseError(f"`{repository}` exists and is public", "make it private on its page, or give another name")
    names = [one.rfilename for one in info.siblings or () if one.rfilename != HUB_ATTRIBUTES]
    if names and RECORD not in names:
        raise ReleaseError(
            f"`{repository}` has {len(names)} files, first `{min(names)}`, but no `{RECORD}`: it is not a release",
            "give the name of a new repository",
        )
    return info.sha, names


def _commit(
    api: "HfApi",
    release: Release,
    repository: str,
    names: Sequence[str],
    deleted: Sequence[str],
    parent: str | None,
    progress: Progress,
) -> str:
    """Upload the large files one by one, then commit all files at once; return the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    additions = [CommitOperationAdd(name, (release.path / name).resolve()) for name in names]
    for addition in progress(additions, "uploading"):
        api.preupload_lfs_files(repository, [addition])
    operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions, *map(CommitOperationDelete, deleted)]
    message = f"Release {release.record.name}"
    return api.create_commit(repository, operations, commit_message=message, parent_commit=parent).oid
