"""Fetching against a server on this machine that breaks off, lies and forgets."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from arlat_core.config import UserError
from arlat_data import fetch as fetch_module
from arlat_data.fetch import Archive, Config, fetch, main, read_speakers
from filelock import FileLock

SPEAKERS = """;ID  |SEX| SUBSET           |MINUTES| NAME
84   | F | dev-clean        |  8.02 | Christie Nowak
60   | M | train-clean-100  | 20.18 | |CBW|Simon
174  | M | dev-clean        |  8.04 | Peter Eastman
"""


def pack(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `data` at any path, by the faults that a test sets; `seen` has each request's Range."""

    daemon_threads = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = data
        self.etag = '"one"'
        self.cut_after: int | None = None  # bytes after which a connection breaks off
        self.statuses: list[int] = []  # answers before the first good one
        self.ranges = True
        self.seen: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/dev-clean.tar.gz"

    def handle_error(self, request: object, client_address: object) -> None:
        """The client may hang up; that is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.seen.append(asked)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        begin = 0
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        fresh = self.headers.get("If-Range", server.etag) == server.etag
        if match and server.ranges and fresh:
            begin = int(match[1])
            if begin >= len(server.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(server.data) - 1}/{len(server.data)}")
        else:
            self.send_response(200)
        body = server.data[begin:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.cut_after])
        self.wfile.flush()
        if server.cut_after is not None:
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


FLACS = {
    f"LibriSpeech/dev-clean/{speaker}/1/{speaker}-1-000{i}.flac": np.random.default_rng(i).bytes(40_000)
    for speaker in (84, 174)
    for i in range(3)
}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(pack({"LibriSpeech/SPEAKERS.TXT": SPEAKERS.encode(), **FLACS}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module.time, "sleep", lambda _: None)


def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the server's archive the published one."""
    known = Archive(hashlib.md5(server.data).hexdigest(), hashlib.sha256(server.data).hexdigest())
    monkeypatch.setitem(fetch_module.ARCHIVES, "dev-clean", known)


def settings(server: Server, out: Path, **values: object) -> Config:
    return Config.model_validate({"subset": "dev-clean", "out": out, "url": server.url, **values})


def check_whole(out: Path) -> None:
    files = {f"LibriSpeech/{p.relative_to(out / 'LibriSpeech')}": p.read_bytes() for p in out.rglob("*.flac")}
    assert files == FLACS
    left = {path.name for path in out.iterdir()} - {"LibriSpeech", ".dev-clean.lock"}
    assert left == set()


def test_an_unbroken_download(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch)
    assert fetch(settings(server, tmp_path)) == tmp_path / "LibriSpeech/dev-clean"
    check_whole(tmp_path)
    assert server.seen == [None]
    fetch(settings(server, tmp_path))
    assert server.seen == [None]  # what is there is not asked for again


def test_a_connection_that_breaks_off_is_resumed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch)
    server.cut_after = 50_000
    fetch(settings(server, tmp_path, attempts=2))
    check_whole(tmp_path)
    expected = [None, *(f"bytes={50_000 * i}-" for i in range(1, -(-len(server.data) // 50_000)))]
    assert server.seen == expected
    assert len(expected) >= 5


def test_a_second_run_goes_on_where_the_first_stopped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch)
    server.cut_after, server.statuses = 50_000, []
    plain = fetch_module.receive

    def once(*arguments: object) -> bool:
        plain(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch_module, "receive", once)
    with pytest.raises(KeyboardInterrupt):
        fetch(settings(server, tmp_path))
    assert (tmp_path / "dev-clean.tar.gz.part").stat().st_size == 50_000
    monkeypatch.setattr(fetch_module, "receive", plain)
    server.cut_after = None
    fetch(settings(server, tmp_path))
    check_whole(tmp_path)
    assert server.seen == [None, "bytes=50000-"]


def test_a_complete_part_is_not_fetched_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch)
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(server.data)
    fetch(settings(server, tmp_path))
    check_whole(tmp_path)
    assert server.seen == [f"bytes={len(server.data)}-"]


def test_a_part_that_is_too_long_begins_anew(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch)
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(server.data + b"more")
    fetch(settings(server, tmp_path))
    check_whole(tmp_path)


@pytest.mark.parametrize("fault", ["no ranges", "another file"])
def test_a_part_that_cannot_be_gone_on_with_begins_anew(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    publish(server, monkeypatch)
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(b"x" * 1000)
    (tmp_path / "dev-clean.tar.gz.etag").write_text('"an older one"')
    server.ranges = fault != "no ranges"
    fetch(settings(server, tmp_path))
    check_whole(tmp_path)


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch)
    server.statuses = [503, 429, 500]
    fetch(settings(server, tmp_path))
    check_whole(tmp_path)


def test_a_server_that_is_gone(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.statuses = [404]
    with pytest.raises(UserError, match="answers 404"):
        fetch(settings(server, tmp_path))
    server.statuses = [503] * 9
    with pytest.raises(UserError, match="answers 503, 3 times in a row"):
        fetch(settings(server, tmp_path, attempts=3))
    with pytest.raises(UserError, match="2 times in a row"):
        fetch(settings(server, tmp_path, url="http://127.0.0.1:9/x", attempts=2))
    with pytest.raises(UserError, match="no http"):
        fetch(settings(server, tmp_path, url="file:///etc/passwd"))


def test_wrong_bytes_are_not_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"expected {fetch_module.ARCHIVES['dev-clean'].md5}"):
        fetch(settings(server, tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {".dev-clean.lock"}
    mine = tmp_path / "dev-clean.tar.gz"
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match="Take it away"):
        fetch(settings(server, tmp_path))
    assert mine.read_bytes() == b"mine"


def test_an_archive_that_is_there_is_used_and_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch)
    (tmp_path / "dev-clean.tar.gz").write_bytes(server.data)
    fetch(settings(server, tmp_path, keep_archive=True))
    assert server.seen == []
    assert (tmp_path / "dev-clean.tar.gz").read_bytes() == server.data


HOSTILE = {
    "a path upwards": pack({"LibriSpeech/../../evil": b"x"}),
    "an absolute path": pack({"/tmp/arlat-evil": b"x"}),
    "another folder": pack({"evil": b"x"}),
    "a link": pack({}, {"LibriSpeech/dev-clean": "/etc"}),
    "another subset": pack({"LibriSpeech/test-clean/1/1/1-1-0.flac": b"x"}),
    "a bomb": pack({"LibriSpeech/dev-clean/zeros": bytes(80 << 20)}),
    "no archive": b"this is no archive",
    "a cut archive": pack(FLACS)[:-5000],
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_archive_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    out = tmp_path / "inner/out"
    server.data = HOSTILE[fault]
    publish(server, monkeypatch)
    with pytest.raises(UserError, match=r"refused|cannot be unpacked|another archive"):
        fetch(settings(server, out))
    assert not list(out.glob("LibriSpeech*"))
    assert {path.name for path in out.iterdir()} == {".dev-clean.lock", "dev-clean.tar.gz"}
    assert {path.name for path in tmp_path.iterdir()} == {"inner"}
    assert not Path("/tmp/arlat-evil").exists()


def test_too_many_files(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch)
    monkeypatch.setattr(fetch_module, "MAX_MEMBERS", 3)
    with pytest.raises(UserError, match="refused"):
        fetch(settings(server, tmp_path))


def test_a_full_disk_is_told_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="GB free"):
        fetch(settings(server, tmp_path))


def test_one_at_a_time(server: Server, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".dev-clean.lock"), pytest.raises(UserError, match="Another process"):
        fetch(settings(server, tmp_path))


def test_the_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(server, monkeypatch)
    assert main(["dev-clean", "--out", str(tmp_path), "--url", server.url], "arlat data fetch") == 0
    assert "6 files, 2 readers (1 F, 1 M)" in capsys.readouterr().out
    check_whole(tmp_path)


def test_readers(tmp_path: Path) -> None:
    (tmp_path / "SPEAKERS.TXT").write_text(SPEAKERS)
    readers = {reader.id: reader for reader in read_speakers(tmp_path)}
    assert readers["60"].name == "|CBW|Simon"
    assert (readers["60"].sex, readers["60"].subset, readers["60"].minutes) == ("M", "train-clean-100", 20.18)
    assert len(readers) == 3
    (tmp_path / "SPEAKERS.TXT").write_text("12 | F | dev\n")
    with pytest.raises(UserError, match="line 1"):
        read_speakers(tmp_path)
    assert read_speakers(tmp_path / "none") == []
