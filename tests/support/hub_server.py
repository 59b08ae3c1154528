"""A Hugging Face hub on this machine: repositories from folders, over the hub's own routes.

    root/models/owner/name/main/config.json     file of a model at the revision `main`
    root/datasets/owner/name/main/README.md     data set
    root/datasets/owner/name/refs-convert-parquet/en/train/0000.parquet    the hub's Parquet copy of it

Files over 1 kB come by a redirect to another host, like large files of the hub. huggingface_hub finds this server by
HF_ENDPOINT, which it reads when it is imported: use it in a process of its own.
"""

import contextlib
import hashlib
import mimetypes
from collections.abc import Sequence
from pathlib import Path

from evaluation_server import listening
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse

KINDS = ("models", "datasets")


def commit_of(folder: Path) -> str:
    """Return a commit hash that changes with any file of the revision."""
    digest = hashlib.sha1(str(folder).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def etag_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Hub:
    """The repositories below `root`, and the requests that were made."""

    def __init__(self, root: Path):
        self.root = root
        self.gated: set[str] = set()
        """Ids that need a licence to be accepted."""
        self.moved: dict[str, str] = {}
        """Old id without an owner -> id; the hub redirects requests for the old one: wikitext."""
        self.commits: dict[str, Path] = {}
        """Commits that are no revision any more -> their files."""
        self.requests: list[str] = []
        """Method and path of each request."""
        self.app = FastAPI()
        self.app.middleware("http")(self._record)
        self.app.add_api_route("/blobs/{path:path}", self._blob, methods=["GET", "HEAD"])
        self.app.add_api_route("/api/{kind}/{rest:path}", self._api, methods=["GET", "POST"])
        self.app.add_api_route("/{rest:path}", self._resolve, methods=["GET", "HEAD"])

    async def _record(self, request: Request, call_next):
        self.requests.append(f"{request.method} {request.url.path}")
        return await call_next(request)

    def _repository(self, kind: str, words: list[str]) -> tuple[str, Path, list[str]] | None:
        """Return id, folder and the remaining words."""
        for size in (2, 1):
            folder = self.root / kind / "/".join(words[:size])
            revisions = [path for path in folder.glob("*") if path.is_dir()] if folder.is_dir() else []
            is_repository = any((path / name).exists() for path in revisions for name in (".revision", "."))
            if len(words) >= size and is_repository and (folder / "main").is_dir():
                return "/".join(words[:size]), folder, words[size:]
        return None

    def _revision(self, folder: Path, name: str) -> Path | None:
        for revision in folder.iterdir():
            if name in (revision.name, commit_of(revision)):
                return revision
        return self.commits.get(name)

    def _words(self, path: str) -> list[str]:
        return path.replace("refs/convert/parquet", "refs-convert-parquet").split("/")

    def files_read(self, requests: Sequence[str] | None = None) -> set[str]:
        """Return the paths of the files that were read, by any part of them: `data/train-0.parquet`."""
        some = self.requests if requests is None else requests
        found = (one.partition("/resolve/")[2].partition("/")[2] for one in some if one.startswith("GET "))
        return {path for path in found if path}

    def _error(self, status: int, code: str, message: str) -> Response:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        return JSONResponse({"error": message}, status_code=status, headers=headers)

    def _find(
        self, kind: str, words: list[str], revision: str, *, is_about: bool = False
    ) -> tuple[str, Path] | Response:
        """`is_about`: the request is about the repository, which anybody may ask, not for its files."""
        found = self._repository(kind, words)
        if found is None:
            # The hub does not tell a missing repository from a private one.
            return self._error(401, "RepoNotFound", "Repository not found")
        name, folder, _ = found
        if name in self.gated and not is_about:
            return self._error(403, "GatedRepo", f"Access to {name} is restricted; accept its licence")
        at = self._revision(folder, revision)
        return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}") if at is None else (name, at)

    async def _api(self, kind: str, rest: str, request: Request) -> Response:
        words = self._words(rest)
        if words[0] in self.moved:
            return RedirectResponse(f"/api/{kind}/{'/'.join([self.moved[words[0]], *words[1:]])}", status_code=307)
        found = self._repository(kind, words)
        tail = [] if found is None else found[2]
        revision = tail[1] if len(tail) > 1 else "main"
        place = self._find(kind, words, revision, is_about=tail != ["auth-check"])
        if isinstance(place, Response):
            return place
        name, folder = place
        if tail == ["auth-check"]:
            return JSONResponse({})
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not tail or tail[0] == "revision":
            siblings = [{"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size} for path in files]
            return JSONResponse(
                {
                    "_id": "0",
                    "id": name,
                    "sha": commit_of(folder),
                    "siblings": siblings,
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "lastModified": "2026-01-01T00:00:00.000Z",
                }
            )
        if tail[0] == "tree":
            return self._tree(folder, "/".join(tail[2:]), recursive=request.query_params.get("recursive") == "true")
        if tail[0] == "paths-info":
            body = await request.form() if "form" in request.headers.get("content-type", "") else await request.json()
            paths = body.getlist("paths") if hasattr(body, "getlist") else body["paths"]
            entries = [self._entry(folder, folder / path) for path in paths if (folder / path).exists()]
            return JSONResponse(entries)
        return self._error(404, "EntryNotFound", f"no route {rest}")

    def _tree(self, folder: Path, inside: str, *, recursive: bool) -> Response:
        start = folder / inside
        if not start.is_dir():
            return self._error(404, "EntryNotFound", f"{inside} does not exist")
        paths = start.rglob("*") if recursive else start.glob("*")
        return JSONResponse([self._entry(folder, path) for path in sorted(paths)])

    def _entry(self, folder: Path, path: Path) -> dict:
        name = str(path.relative_to(folder))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
        return {"type": "file", "path": name, "oid": etag_of(path)[:40], "size": path.stat().st_size}

    async def _resolve(self, rest: str, request: Request) -> Response:
        words = self._words(rest)
        kind = "models"
        if words[0] in KINDS:
            kind, words = words[0], words[1:]
        if words[0] in self.moved:
            parts = [*rest.split("/")[: -len(words)], self.moved[words[0]], *words[1:]]
            return RedirectResponse("/" + "/".join(parts), status_code=307)
        if "resolve" not in words:
            return self._error(404, "EntryNotFound", f"no route {rest}")
        at = words.index("resolve")
        place = self._find(kind, words[:at], words[at + 1])
        if isinstance(place, Response):
            return place
        _, folder = place
        path = folder.joinpath(*words[at + 2 :])
        if not path.is_file():
            return self._error(404, "EntryNotFound", f"{path.name} does not exist")
        size = path.stat().st_size
        headers = {"X-Repo-Commit": commit_of(folder), "ETag": f'"{etag_of(path)}"', "Accept-Ranges": "bytes"}
        if size > 1024:
            headers |= {"X-Linked-ETag": f'"{etag_of(path)}"', "X-Linked-Size": str(size)}
            # Another host, as the hub's large files have: its clients read the headers of the redirect itself.
            elsewhere = f"http://localhost:{request.url.port}/blobs/{path.relative_to(self.root)}"
            return RedirectResponse(elsewhere, status_code=302, headers=headers)
        if request.method == "HEAD":
            return Response(headers=headers | {"Content-Length": str(size)})
        return FileResponse(path, headers=headers)

    async def _blob(self, path: str) -> Response:
        return FileResponse(self.root / path, media_type=mimetypes.guess_type(path)[0])


@contextlib.contextmanager
def serving_hub(root: Path):
    """Serve the repositories below `root`; yields the `Hub` and its URL."""
    hub = Hub(root)
    with listening(hub.app) as url:
        yield hub, url
