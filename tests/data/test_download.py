"""Downloads from a server on this machine that cuts connections, lies about lengths, is slow, or sends something else."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dna_mamba.data import download as module
from dna_mamba.data.download import check_url, download
from dna_mamba.errors import InputError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Serve CONTENT under any path, in the way that `server.mode` names; `server.asked` lists the Range of each request."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            asked = self.headers.get("Range")
            if self.headers.get("If-Range") not in (None, self.server.version):
                asked = None  # the file changed since: all of it is sent
            self.server.asked.append(asked)
            mode, content, start = self.server.mode, self.server.content, 0
            if mode == "404":
                return self.send_error(404)
            if mode == "busy" and len(self.server.asked) < 3:
                return self.send_error(503)
            if mode == "redirect":
                self.send_response(302)
                self.send_header("Location", "http://example.org/elsewhere")
                return self.end_headers()
            if asked and mode != "no ranges":
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(content) and mode != "never":
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    return self.end_headers()
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if self.server.version:
                self.send_header("ETag", self.server.version)
            rest = content[start:]
            if mode != "no length":
                self.send_header("Content-Length", str(len(rest) + (1000 if mode in ("too long", "never") else 0)))
            self.end_headers()
            if mode == "cuts":
                rest = rest[:70_000]
            if mode == "silent" and len(self.server.asked) < 3:
                self.wfile.write(rest[:50_000])
                self.wfile.flush()
                time.sleep(2)
                return None
            for i in range(0, len(rest), 50_000):
                self.wfile.write(rest[i : i + 50_000])
                if mode == "slow":
                    self.wfile.flush()
                    time.sleep(0.1)
            return None

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    found.mode, found.content, found.asked, found.version = "good", CONTENT, [], None
    found.url = f"http://127.0.0.1:{found.server_port}/genome.fa.gz"
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()


@pytest.mark.parametrize("mode", ["good", "cuts", "slow", "no length", "busy", "no ranges", "too long"])
def test_the_bytes_arrive_whatever_the_server_does(mode, server, tmp_path):
    server.mode = mode
    seen = []
    path = tmp_path / "new" / "genome.fa.gz"
    found = download(server.url, path, sha256=SHA256, on_progress=lambda done, total: seen.append(done), pause=0.01)
    assert found == SHA256 and path.read_bytes() == CONTENT
    assert seen[-1] == len(CONTENT) and [p.name for p in path.parent.iterdir()] == ["genome.fa.gz"]
    if mode == "cuts":  # each request asks for what is missing, not for all
        assert server.asked == [None, *(f"bytes={70_000 * i}-" for i in range(1, 5))]


def test_a_server_that_falls_silent_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.3)
    server.mode = "silent"
    assert download(server.url, tmp_path / "g", sha256=SHA256, pause=0.01) == SHA256
    assert server.asked == [None, "bytes=50000-", "bytes=100000-"]


def test_a_download_that_was_killed_goes_on(server, tmp_path):
    (tmp_path / "g.part").write_bytes(CONTENT[:123_456])
    assert download(server.url, tmp_path / "g", sha256=SHA256) == SHA256
    assert server.asked == ["bytes=123456-"]
    (tmp_path / "h.part").write_bytes(CONTENT)  # killed between the last byte and the new name
    assert download(server.url, tmp_path / "h", sha256=SHA256) == SHA256


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    download(server.url, tmp_path / "g", sha256=SHA256)
    server.mode = "404"
    assert download(server.url, tmp_path / "g", sha256=SHA256) == SHA256
    assert download(server.url, tmp_path / "g") == SHA256
    assert len(server.asked) == 1


def test_other_bytes_are_refused_and_what_was_there_stays(server, tmp_path):
    (tmp_path / "g").write_bytes(b"the one before")
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(InputError, match="do not have the SHA-256"):
        download(server.url, tmp_path / "g", sha256=SHA256, pause=0.01)
    assert (tmp_path / "g").read_bytes() == b"the one before"
    server.content = CONTENT
    assert download(server.url, tmp_path / "g", sha256=SHA256) == SHA256


def test_a_length_that_never_comes_ends_in_one_line_and_keeps_what_came(server, tmp_path):
    server.mode = "never"
    with pytest.raises(InputError, match="no byte came in 5 attempts .* 300,000 bytes are kept"):
        download(server.url, tmp_path / "g", sha256=SHA256, pause=0.001)
    assert (tmp_path / "g.part").read_bytes() == CONTENT and not (tmp_path / "g").exists()


@pytest.mark.parametrize("mode, words", [("404", "the server says 404"), ("redirect", "is refused")])
def test_what_is_not_there_or_elsewhere_is_told(mode, words, server, tmp_path, monkeypatch):
    server.mode = mode
    if mode == "redirect":  # without a network: the redirect is not followed, its target is checked
        monkeypatch.setattr(module.requests, "get", lambda url, **o: _Answer("http://example.org/elsewhere"))
    with pytest.raises(InputError, match=words):
        download(server.url, tmp_path / "g", sha256=SHA256, pause=0.01)
    assert not (tmp_path / "g").exists()


class _Answer:
    def __init__(self, url):
        self.url = url

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def test_more_bytes_than_allowed_are_refused(server, tmp_path):
    for mode in ("good", "no length"):
        server.mode = mode
        with pytest.raises(InputError, match="allowed"):
            download(server.url, tmp_path / mode, max_bytes=100_000, pause=0.01)
        assert not (tmp_path / mode).exists()


@pytest.mark.parametrize("url", ["http://example.org/x", "file:///etc/passwd", "ftp://x/y", "https://", "x"])
def test_only_https_is_fetched(url):
    with pytest.raises(InputError, match="begins with https://"):
        check_url(url)


def test_halves_of_two_versions_are_never_joined(server, tmp_path):
    """The file changes on the server while a part of it is here: with a version the rest of the new one is not taken."""
    other = CONTENT[::-1]
    server.mode, server.version = "cuts", '"one"'
    part = tmp_path / "genome.fa.gz.part"
    part.write_bytes(CONTENT[:70_000])
    (tmp_path / "genome.fa.gz.part.version").write_text('"one"')
    server.content, server.version = other, '"two"'
    download(server.url, tmp_path / "genome.fa.gz", pause=0.01)
    assert (tmp_path / "genome.fa.gz").read_bytes() == other
    assert [path.name for path in tmp_path.iterdir()] == ["genome.fa.gz"]


def test_a_part_of_another_day_counts_only_if_something_says_that_the_file_is_the_same(server, tmp_path):
    part = tmp_path / "genome.fa.gz.part"
    part.write_bytes(b"x" * 70_000)
    download(server.url, tmp_path / "genome.fa.gz", pause=0.01)
    assert (tmp_path / "genome.fa.gz").read_bytes() == CONTENT and server.asked == [None]
