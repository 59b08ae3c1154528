"""Pushing a checkpoint: through huggingface_hub, to a server that speaks as much of the hub as that takes."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from phf_ray.errors import ConfigError, IncompleteError
from phf_ray.training.hub import push_to_hub


class Hub(ThreadingHTTPServer):
    """Keeps what is committed. It takes small files only, which travel inside the commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def answer(self, value, *, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"id": "owner/model", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            self.answer({"error": "no such key"}, status=401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.url}/owner/model", "name": "owner/model"})
        elif self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        else:
            assert "/commit/" in self.path, self.path
            for line in body.decode().splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    value = operation["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            commit = {"commitUrl": f"{self.server.url}/owner/model/commit/{'1' * 40}", "commitOid": "1" * 40}
            self.answer({**commit, "success": True})


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "step-00000034"
    trained = ("training_state/optimizer.safetensors", "critic/model.safetensors")
    for name in ("model.safetensors", "config.json", "phf.json", "COMPLETE", *trained):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# pep8\n")
    return folder


def test_a_model_folder_arrives_without_the_state_of_its_training(hub, checkpoint):
    url = push_to_hub(checkpoint, repository="owner/model", private=True, endpoint=hub.url)
    assert url == f"{hub.url}/owner/model"
    assert hub.files.keys() == {"README.md", "model.safetensors", "config.json", "phf.json"}
    assert hub.files["model.safetensors"] == b"model.safetensors"
    assert "private" in {hub.created[0].get("visibility"), *hub.created[0]}


def test_a_hub_that_refuses_leaves_the_model_where_it_is(hub, checkpoint):
    hub.refuses = True
    with pytest.raises(IncompleteError, match=r"trained and stays in .*step-00000034"):
        push_to_hub(checkpoint, repository="owner/model", private=True, endpoint=hub.url)


def test_a_hub_that_is_not_there_is_named_too(hub, checkpoint):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(IncompleteError, match="could not be pushed to owner/model"):
        push_to_hub(checkpoint, repository="owner/model", private=True, endpoint=hub.url)


def test_a_name_that_is_no_repository_s_is_refused(hub, checkpoint):
    with pytest.raises(ConfigError, match=r"training\.hub_model_id='a/b/c'"):
        push_to_hub(checkpoint, repository="a/b/c", private=True, endpoint=hub.url)
