"""A stand-in of the hub's HTTP interface for tests: repositories with commits, large files, errors and uploads."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_SUFFIXES = (".safetensors", ".gguf", ".onnx", ".bin")  # stored as large files, behind a redirect
Files = Mapping[str, bytes]


@dataclass
class Repository:
    """Commits by hash, branches and tags by name."""

    commits: dict[str, Files] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def add(self, files: Files, revision: str = "main") -> str:
        """Add a commit to a branch, and return its hash."""
        listing = repr([(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())])
        commit = hashlib.sha1(f"{len(self.commits)}{listing}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.revisions[revision] = commit
        return commit


@dataclass
class Hub:
    """The state of the server: repositories, uploaded objects, requests, and faults to inject."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)  # that requests had
    cut_after: dict[str, int] = field(default_factory=dict)  # bytes of a large file before the connection is closed
    failing: dict[str, int] = field(default_factory=dict)  # status of requests whose path contains a text

    def add(self, name: str, files: Files, revision: str = "main") -> str:
        """Add a commit to a repository, which is created if necessary."""
        return self.repositories.setdefault(name, Repository()).add(files, revision)

    def downloads(self) -> list[str]:
        """Return the names of the files that were requested, without those of interrupted downloads."""
        found = [re.search(r"/resolve/[^/]+/(.+)", path) for verb, path in self.requests if verb == "GET"]
        return [match[1] for match in found if match]


@contextmanager
def run_hub() -> Iterator[Hub]:
    """Run the server on a free port of this computer."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        """Answer as GET, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer for revisions, lists of files, and files."""
        path = self._begin()
        if path is None:
            return
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._revision(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(match[1], match[2])
        elif match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/objects/(\w+)", path):
            self._object(match[1])
        else:
            self._fail(404, "EntryNotFound")

    def do_POST(self) -> None:
        """Answer for new repositories, upload modes, large files and commits."""
        path = self._begin()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if path else b""
        if path is None:
            return
        if "Authorization" not in self.headers:
            self._fail(401, "")
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = ["lfs" if one["path"].endswith(LARGE_SUFFIXES) else "regular" for one in files]
            pairs = zip(files, modes, strict=True)
            self._json({"files": [{"path": f["path"], "uploadMode": mode, "shouldIgnore": False} for f, mode in pairs]})
        elif path.endswith("/info/lfs/objects/batch"):
            self._json({"transfer": "basic", "objects": [self._upload(one) for one in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self._commit(match[1], match[2], body)
        else:
            self._fail(404, "EntryNotFound")

    def do_PUT(self) -> None:
        """Store a large file."""
        path = self._begin()
        if path is None:
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == path.rpartition("/")[2]
        self.hub.objects[path.rpartition("/")[2]] = content
        self._send(200, b"")

    def _begin(self) -> str | None:
        """Record a request, and return its path, or None if it was answered with an injected error."""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token)
        for text, status in self.hub.failing.items():
            if text in path:
                self.close_connection = True
                self._fail(status, "")
                return None
        return path

    def _find(self, name: str, revision: str) -> tuple[str, Files] | None:
        """Return the commit of a revision, or None after the error was sent."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and "Authorization" not in self.headers):
            self._fail(401, "RepoNotFound")
            return None
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            if repository.commits or revision != "main":
                self._fail(404, "RevisionNotFound")
                return None
            return "0" * 40, {}
        return commit, repository.commits[commit]

    def _revision(self, name: str, revision: str) -> None:
        if found := self._find(name, revision):
            siblings = [{"rfilename": path} for path in found[1]]
            private = self.hub.repositories[name].private
            self._json({"id": name, "sha": found[0], "private": private, "tags": [], "siblings": siblings})

    def _tree(self, name: str, revision: str) -> None:
        if found := self._find(name, revision):
            self._json([_entry(path, content) for path, content in found[1].items()])

    def _file(self, name: str, revision: str, path: str) -> None:
        if not (found := self._find(name, revision)):
            return
        commit, files = found
        if self.hub.repositories[name].gated and "Authorization" not in self.headers:
            self._fail(401, "GatedRepo")
        elif path not in files:
            self._fail(404, "EntryNotFound")
        elif path.endswith(LARGE_SUFFIXES):
            sha256 = hashlib.sha256(files[path]).hexdigest()
            self.hub.objects[sha256] = files[path]
            storage = self.hub.url.replace("127.0.0.1", "localhost")  # another host, to which no token is sent
            headers = {"Location": f"{storage}/objects/{sha256}", "X-Repo-Commit": commit}
            headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(files[path]))}
            self._send(302, b"", headers)
        else:
            self._send(200, files[path], {"X-Repo-Commit": commit, "ETag": f'"{_blob_id(files[path])}"'})

    def _object(self, sha256: str) -> None:
        """Send a large file, or the requested part of it; the connection can be closed within."""
        assert "Authorization" not in self.headers
        content = self.hub.objects[sha256]
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        part = content[int(requested[1]) :] if requested else content
        cut = self.hub.cut_after.pop(sha256, None)
        self._send(206 if requested else 200, part, {"ETag": f'"{sha256}"'}, cut)

    def _create(self, request: Mapping[str, Any]) -> None:
        name = f"{request['organization']}/{request['name']}"
        address = json.dumps({"url": f"{self.hub.url}/{name}"}).encode()
        if name in self.hub.repositories:
            self._send(409, address)
            return
        self.hub.repositories[name] = Repository(private=request.get("visibility") == "private")
        self._send(200, address)

    def _upload(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """Return the address that a large file is uploaded to, or none if the server has it."""
        answer: dict[str, Any] = {"oid": described["oid"], "size": described["size"]}
        if described["oid"] not in self.hub.objects:
            answer["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{described['oid']}"}}
        return answer

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        if not (found := self._find(name, revision)):
            return
        files = dict(found[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.repositories[name].add(files, revision)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut_after: int | None = None
    ) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut_after])
        if cut_after is not None:
            self.close_connection = True


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if path.endswith(LARGE_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
