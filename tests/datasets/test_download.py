"""Downloads against a local server that breaks off, lies, and knows or ignores Range."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from equibit.datasets.catalog import RemoteFile
from equibit.datasets.download import download
from equibit.structures import DatasetError

CONTENT = bytes(range(256)) * 4000  # 1 MB


class Server(ThreadingHTTPServer):
    """Serves CONTENT; ``break_after`` bytes of a reply the connection ends, ``breaks`` times."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []
        self.breaks = 0
        self.break_after = 300_000
        self.ranges = True
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if not self.server.ranges:
            start = 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        body = CONTENT[start:]
        if self.server.breaks > 0:
            self.server.breaks -= 1
            body = body[: self.server.break_after]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def remote(server: Server, **changes: object) -> RemoteFile:
    given = {"size": len(CONTENT), "md5": hashlib.md5(CONTENT).hexdigest(), **changes}
    return RemoteFile("file.bin", (server.url,), **given)  # type: ignore[arg-type]


def test_whole_file_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    folder = tmp_path / "new" / "folder"
    path = download(remote(server), folder, progress=lambda *report: seen.append(report))
    assert path.read_bytes() == CONTENT
    assert seen[0] == ("file.bin", 0, len(CONTENT))
    assert seen[-1] == ("file.bin", len(CONTENT), len(CONTENT))
    assert [p.name for p in folder.iterdir()] == ["file.bin"]


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT)
    download(remote(server), tmp_path)
    assert server.requests == []


def test_a_damaged_file_that_is_there_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DatasetError, match=r"not what the archive holds.*delete it"):
        download(remote(server), tmp_path)


def test_broken_transfers_are_taken_up_where_they_broke(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    path = download(remote(server), tmp_path, retry_delay=0)
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-", "bytes=600000-"]


def test_an_interrupted_download_goes_on_in_the_next_call(server: Server, tmp_path: Path) -> None:
    def interrupt(_: str, done: int, __: int | None) -> None:
        if done >= 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(remote(server), tmp_path, progress=interrupt)
    part = tmp_path / "file.bin.part"
    begun = part.stat().st_size
    assert 500_000 <= begun < len(CONTENT)
    assert not (tmp_path / "file.bin").exists()
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == f"bytes={begun}-"
    assert not part.exists()


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    server.ranges = False
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_whole_part_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    download(remote(server), tmp_path)
    assert server.requests == []


def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"its MD5 is \w+ instead of 0000"):
        download(remote(server, md5="0000"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_part_is_thrown_away_so_that_a_repeat_succeeds(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DatasetError, match="MD5"):
        download(remote(server), tmp_path)
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_wrong_size_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"bytes instead of 1000"):
        download(remote(server, size=1000, md5=None), tmp_path)


def test_the_second_address_is_tried(server: Server, tmp_path: Path) -> None:
    both = RemoteFile("file.bin", ("http://127.0.0.1:9/nobody", server.url), md5=remote(server).md5)
    assert download(both, tmp_path, retry_delay=0).read_bytes() == CONTENT


def test_offline_says_what_to_download_and_where_to_put_it(tmp_path: Path) -> None:
    absent = RemoteFile("file.bin", ("http://127.0.0.1:9/nobody",), size=2_000_000, md5="abc")
    with pytest.raises(DatasetError) as caught:
        download(absent, tmp_path, retry_delay=0)
    for part in ("http://127.0.0.1:9/nobody", "file.bin, 2 MB, MD5 abc", str(tmp_path)):
        assert part in str(caught.value)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 3)])
def test_only_what_may_pass_is_repeated(
    server: Server, tmp_path: Path, status: int, requests: int
) -> None:
    server.status = status
    with pytest.raises(DatasetError, match="cannot download"):
        download(remote(server), tmp_path, retry_delay=0)
    assert len(server.requests) == requests


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="cannot write"):
        download(remote(server), tmp_path / "file" / "folder")
