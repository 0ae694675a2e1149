"""A model by its name on the hub, here a local server that answers as the hub does."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dna_mamba.model.checkpoints.native import shipped
from tests.conftest import ROOT

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {name: (shipped("human-4x64") / name).read_bytes() for name in ("config.json", "model.safetensors")}


class Hub(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def answer(self, body):
        Hub.asked.append(self.path)
        name = self.path.rsplit("/", 1)[-1]
        content = None
        if self.path.startswith("/api/models/lab/gorilla/"):
            names = [*FILES, "evil.py", "README.md"]
            content = json.dumps(
                {"id": "lab/gorilla", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            ).encode()
        elif self.path.startswith("/lab/gorilla/resolve/") and name in FILES:
            content = FILES[name]
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{name}"')
        if content is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def load(name, endpoint, folder: Path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    program = "import sys, dna_mamba as dm; print(dm.load(sys.argv[1], device='cpu').score('ACGTACGT'))"
    return subprocess.run(
        [sys.executable, "-c", program, name], capture_output=True, text=True, env=environment, cwd=folder
    )


def test_a_model_on_the_hub_is_loaded_by_its_name(endpoint, tmp_path):
    done = load("lab/gorilla", endpoint, tmp_path)
    here = load("human-4x64", endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == float(here.stdout) < -5
    assert not any("evil.py" in path for path in Hub.asked)


def test_a_name_that_the_hub_does_not_know_is_told_in_one_line(endpoint, tmp_path):
    done = load("lab/nothing", endpoint, tmp_path)
    assert (
        done.returncode == 1
        and "lab/nothing is no directory here, and the hub did not give it" in done.stderr.splitlines()[-1]
    )
