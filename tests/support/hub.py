"""The Hugging Face Hub: its cache, laid out as its own client does, and a server that says what its own would."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def cached(cache: Path, name: str, files: Mapping[str, str | bytes | Path], revision: str = "0" * 39 + "1") -> Path:
    """Put a model into a cache: files as links into blobs, and a branch that names the commit.

    Args:
        cache: the folder that HF_HUB_CACHE names.
        name: the model's id.
        files: by their path in the repository, what they hold, or which file to copy.
        revision: the commit.

    Returns:
        Its snapshot.
    """
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / revision, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    for path, given in files.items():
        content = given.read_bytes() if isinstance(given, Path) else given.encode() if isinstance(given, str) else given
        blob, link = blobs / hashlib.sha256(content).hexdigest(), snapshot / path
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(Path(path).parts) + 1), "blobs", blob.name))
    return snapshot


def of_folder(folder: Path) -> dict[str, Path]:
    """The files of a folder, to be put into a cache."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


# By how the path begins: of one model all is gated, of another, which is the one that is served, its files, and one
# takes no token.
_REFUSED = {
    "api/models/org/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "org/terms/resolve/": (401, {"X-Error-Code": "GatedRepo"}),
    "api/models/org/login": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
}


@contextmanager
def served(name: str, files: Mapping[str, bytes], asked: list[str], revision: str = "0" * 39 + "2") -> Iterator[str]:
    """A Hub on this machine that has one model; any other one but those of `_REFUSED` is not there.

    Args:
        name: the model's id.
        files: what it holds.
        asked: takes the paths that are asked for.
        revision: its commit, which is also that of `main`.

    Yields:
        The address, for HF_ENDPOINT.
    """

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.partition("?")[0].strip("/")
            refused = next((said for begins, said in _REFUSED.items() if path.startswith(begins)), None)
            path = path.replace("models/org/terms", f"models/{name}")
            if refused is not None:
                self._send(b"", *refused)
            elif not path.startswith((f"api/models/{name}", f"{name}/resolve/")):
                self._error(401, "RepoNotFound")
            elif path.startswith("api/") and not any(one in path for one in ("main", revision)) and "revision" in path:
                self._error(404, "RevisionNotFound")
            elif path.startswith(f"api/models/{name}/tree"):
                tree = [
                    {"type": "file", "path": one, "size": len(content), "oid": hashlib.sha256(content).hexdigest()[:40]}
                    for one, content in files.items()
                ]
                self._send(json.dumps(tree).encode())
            elif path.startswith("api/"):
                siblings = [{"rfilename": one} for one in files]
                self._send(json.dumps({"id": name, "sha": revision, "siblings": siblings}).encode())
            else:
                self._send(files[path.removeprefix(f"{name}/resolve/").partition("/")[2]])

        do_HEAD = do_GET  # noqa: N815

        def _error(self, status: int, code: str) -> None:
            self._send(b"", status, {"X-Error-Code": code})

        def _send(self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            known = {"Content-Length": str(len(content)), "ETag": f'"{hashlib.sha256(content).hexdigest()[:40]}"'}
            for key, value in {**known, "X-Repo-Commit": revision, **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
