"""Downloads that go on where they stopped, checked by SHA-256, whole under their name or not there."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from urllib3.exceptions import HTTPError

from dna_mamba.data.store.genome import file_sha256
from dna_mamba.errors import InputError

pooch.get_logger().setLevel("ERROR")  # it tells of every download

Progress = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all, where the server says how many."""

ATTEMPTS = 5
CONNECT_SECONDS, SILENT_SECONDS = 15.0, 60.0
"""A server that does not answer, or sends nothing for so long, counts as a cut connection."""
BLOCK = 1 << 16
MAX_BYTES = 1 << 40


class _Cut(Exception):
    """The connection ended early; the next attempt goes on."""


def check_url(url: str) -> None:
    """Refuse what is neither https nor, on this machine alone, http.

    Raises:
        InputError: The URL has another scheme or no host.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"URL {url!r} is no URL: {error}") from error
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if (parts.scheme != "https" and not (parts.scheme == "http" and local)) or not parts.hostname:
        raise InputError(f"URL {url!r} is refused: give one that begins with https://")


class ResumingDownloader:
    """For pooch: keeps what came in a .part file beside the target, and asks the server for the rest."""

    def __init__(
        self,
        part: Path,
        on_progress: Progress | None = None,
        max_bytes: int = MAX_BYTES,
        pause: float = 1.0,
        has_checksum: bool = False,
    ):
        self.part = part
        self.has_checksum = has_checksum
        self.on_progress = on_progress or (lambda done, total: None)
        self.max_bytes = max_bytes
        self.pause = pause
        self.version = part.with_name(f"{part.name}.version")
        """Holds what the server called this version of the file."""

    def __call__(self, url: str, output_file: str | Path, pooch: object, check_only: bool = False) -> None:
        """Download, in as many attempts as it takes and ATTEMPTS allows without any progress."""
        if not (self.has_checksum or self.version.exists()):
            self.part.unlink(missing_ok=True)  # of another day, and nothing says whether the file is still the same
        failures, best = 0, -1
        while True:
            try:
                self._attempt(url)
                break
            except (requests.RequestException, HTTPError, _Cut) as error:
                size = self.part.stat().st_size if self.part.exists() else 0
                failures = 0 if size > best else failures + 1
                best = max(best, size)
                if failures >= ATTEMPTS:
                    reason = str(error) if isinstance(error, _Cut) else type(error).__name__
                    raise InputError(
                        f"{url}: no byte came in {ATTEMPTS} attempts ({reason}); {size:,} bytes are kept, the same command "
                        f"goes on from there"
                    ) from error
                time.sleep(self.pause * 2 ** min(failures, 5))
        self.part.replace(output_file)
        self.version.unlink(missing_ok=True)

    def _attempt(self, url: str) -> None:
        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.version.exists():  # else the server would not say that the file changed meanwhile
                headers["If-Range"] = self.version.read_text(encoding="utf-8")
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, SILENT_SECONDS)) as answer:
            check_url(answer.url)  # where redirects led
            if answer.status_code == 416:  # nothing after what is here
                if answer.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                    return
                self.part.unlink()  # the file changed
                raise _Cut("the file on the server changed")
            if answer.status_code in (429, 500, 502, 503, 504):
                raise _Cut(f"HTTP status {answer.status_code}")
            if answer.status_code not in (200, 206):
                raise InputError(f"{url}: the server says {answer.status_code} {answer.reason}; is the URL right?")
            if answer.status_code == 200:
                have = 0  # the server sends all of it
                self._note_version(answer)
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                self.part.unlink()
                raise _Cut("the server sent another part than was asked for")
            length = answer.headers.get("Content-Length")
            total = None if length is None else have + int(length)
            if total is not None and total > self.max_bytes:
                raise InputError(f"{url}: {total:,} bytes are more than the {self.max_bytes:,} that are allowed")
            self._write(answer, url, have, total)

    def _note_version(self, answer: requests.Response) -> None:
        """Keep what tells, on the next attempt, whether the file is still the same."""
        version = answer.headers.get("ETag", "")
        if not version or version.startswith("W/"):  # a weak one does not promise equal bytes
            version = answer.headers.get("Last-Modified", "")
        if version:
            self.version.write_text(version, encoding="utf-8")
        else:
            self.version.unlink(missing_ok=True)

    def _write(self, answer: requests.Response, url: str, have: int, total: int | None) -> None:
        with open(self.part, "r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            # read1 gives what there is; larger reads would lose what came before a cut
            while block := answer.raw.read1(BLOCK):
                if have + len(block) > self.max_bytes:
                    raise InputError(f"{url}: more than the {self.max_bytes:,} bytes that are allowed came")
                file.write(block)
                have += len(block)
                self.on_progress(have, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and have < total:
            raise _Cut(f"{have:,} of {total:,} bytes came")


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    on_progress: Progress | None = None,
    max_bytes: int = MAX_BYTES,
    pause: float = 1.0,
) -> str:
    """Download a file, unless it is there already, and give its SHA-256.

    Args:
        url: https, or http on this machine.
        path: Where it is to lie; what has arrived so far lies beside it with the ending .part.
        sha256: What it must be; without it whatever comes is taken, and the caller records what it was.
        on_progress: Called while bytes arrive.
        max_bytes: Refuse more.
        pause: Seconds before the second attempt, doubled for each further one.

    Raises:
        InputError: The server refuses, no byte comes in five attempts, or the checksum is another. What was at the path
            stays as it was.
    """
    check_url(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and sha256 is None:
        return file_sha256(path)
    part = path.with_name(f"{path.name}.part")
    try:
        pooch.retrieve(
            url,
            known_hash=None if sha256 is None else f"sha256:{sha256}",
            fname=path.name,
            path=path.parent,
            downloader=ResumingDownloader(part, on_progress, max_bytes, pause, sha256 is not None),
        )
    except ValueError as error:
        if isinstance(error, InputError) or sha256 is None:
            raise
        raise InputError(
            f"{url}: the bytes that came do not have the SHA-256 {sha256}; they were thrown away. Try again, and if it "
            f"stays so, the file on the server is another than the manifest means"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    return file_sha256(path)
