"""`arlat data fetch`: LibriSpeech from openslr.org, resumed where it broke off, checked, and unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import tyro
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.files import atomic_write
from filelock import FileLock, Timeout
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

Subset = Literal["train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other"]
BASE_URL = "https://www.openslr.org/resources/12/"
TIMEOUT_SECONDS = 60.0
BLOCK = 1 << 20
MAX_MEMBERS = 400_000
MAX_RATIO = 4  # unpacked bytes over packed; FLAC does not compress, so it is 1 in truth
SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Archive:
    """A published archive's checksums: MD5 from openslr's md5sum.txt, SHA-256 as torchaudio lists it."""

    md5: str
    sha256: str


ARCHIVES: dict[str, Archive] = {
    "train-clean-100": Archive(
        "2a93770f6d5c6c964bc36631d331a522", "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"
    ),
    "dev-clean": Archive(
        "42e2234ba48799c1f50f24a7926300a1", "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"
    ),
    "dev-other": Archive(
        "c8d0bcc9cca99d4f8b62fcc847357931", "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"
    ),
    "test-clean": Archive(
        "32fa31d27d2e1cad72775fee3f4849a9", "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"
    ),
    "test-other": Archive(
        "fb5a50374b501bb3bac4815ee91d3135", "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"
    ),
}


class Config(BaseConfig):
    """Settings of `arlat data fetch`."""

    subset: tyro.conf.Positional[Subset]
    """Which part of LibriSpeech (train-clean-100 is 6.4 GB, the others 0.3 GB each)."""
    out: Path
    """Folder that gets LibriSpeech/SUBSET/…; the archive is kept beside it only while it is needed."""
    url: str | None = None
    """Address of the archive, for a mirror; its checksum must be the same."""
    keep_archive: bool = False
    """Keep SUBSET.tar.gz after unpacking."""
    attempts: int = Field(8, gt=0)
    """How often in a row the connection may fail without one new byte."""


def main(arguments: list[str], prog: str) -> int:
    """Runs `arlat data fetch`."""
    config = parse(Config, arguments, prog, "Download LibriSpeech (CC BY 4.0), check it and unpack it.")
    folder = fetch(config)
    files = sum(1 for _ in folder.rglob("*.flac"))
    readers = [reader for reader in read_speakers(folder.parent) if reader.subset == config.subset]
    sexes = Counter(reader.sex for reader in readers)
    told = f", {len(readers)} readers ({sexes['F']} F, {sexes['M']} M)" if readers else ""
    print(f"{folder}: {files} files{told}. Next: arlat data extract --audio {folder} --codec NAME --out STORE")
    return 0


def fetch(config: Config) -> Path:
    """Downloads, checks and unpacks one subset; returns OUT/LibriSpeech/SUBSET, at once when it is there."""
    target = config.out / "LibriSpeech" / config.subset
    if target.is_dir():
        return target
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"Python {sys.version.split()[0]} cannot unpack archives safely; use 3.11.4 or newer.")
    config.out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(config.out / f".{config.subset}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"Another process fetches {config.subset} into {config.out}. Wait for it.") from error
    try:
        archive = config.out / f"{config.subset}.tar.gz"
        url = config.url or f"{BASE_URL}{config.subset}.tar.gz"
        known = ARCHIVES[config.subset]
        if not archive.is_file():
            part = archive.with_suffix(".gz.part")
            download(url, part, config.attempts)
            check(part, known, url)
            part.replace(archive)
            part.with_suffix(".etag").unlink(missing_ok=True)
        else:
            check(archive, known, url)
        unpack(archive, config.out, config.subset)
        if not config.keep_archive:
            archive.unlink()
    finally:
        lock.release()
    return target


def download(url: str, part: Path, attempts: int) -> None:
    """Fills `part` from `url`, going on behind the bytes that are there, over any number of interruptions.

    Raises UserError when the server refuses, or when `attempts` connections in a row bring nothing.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} is no http or https address.")
    failures = 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(part.name.removesuffix(".part"), total=None)
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                if receive(url, part, progress, task):
                    return
                problem = "the connection broke off"
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):
                    raise UserError(f"{url} answers {error.code} {error.reason}. Give another --url.") from error
                problem = f"the server answers {error.code}"
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.filename == str(part):
                    raise UserError(f"{part} cannot be written: {error.strerror}.") from error
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            now = part.stat().st_size if part.exists() else 0
            failures = 0 if now > before else failures + 1
            if failures >= attempts:
                raise UserError(f"{url}: {problem}, {failures} times in a row. {now} bytes are kept; repeat to go on.")
            time.sleep(min(30.0, 0.1 * 2**failures))


def receive(url: str, part: Path, progress: Progress, task: TaskID) -> bool:
    """One request, appended to `part`; says whether the file is now complete."""
    have = part.stat().st_size if part.exists() else 0
    etag = part.with_suffix(".etag")
    request = urllib.request.Request(url, headers={"User-Agent": "arlat", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if etag.is_file():
            request.add_header("If-Range", etag.read_text(encoding="ascii"))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if error.code == 416 and total and int(total[1]) == have:
            return True
        if error.code == 416:  # what is here is longer than, or not part of, what the server has
            part.unlink(missing_ok=True)
            return False
        raise
    with response:
        begin, total_bytes = span(response, have)
        if begin != have:
            have = 0
            part.unlink(missing_ok=True)
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and not validator.startswith("W/"):
            atomic_write(etag, validator)
        if total_bytes is not None:
            require_space(part.parent, total_bytes * 2 - have)
        progress.update(task, total=total_bytes, completed=have)
        with part.open("ab") as file:
            while block := response.read(BLOCK):
                file.write(block)
                have += len(block)
                progress.update(task, completed=have)
            file.flush()
            os.fsync(file.fileno())
    return total_bytes is None or have >= total_bytes


def span(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the answer begins in the file, and how long the file is: a server may ignore a Range and send all."""
    length = response.headers.get("Content-Length")
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise UserError(
                f"The server answers a request for bytes {have}- with {response.headers.get('Content-Range')}."
            )
        return have, None if found[2] == "*" else int(found[2])
    return 0, int(length) if length else None


def require_space(folder: Path, needed: int) -> None:
    """Raises UserError when the disk cannot hold the archive and what is in it."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed. Choose another --out."
        )


def check(path: Path, known: Archive, url: str) -> None:
    """Compares both checksums; a wrong partial file is deleted, so that a repeated command begins anew."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            md5.update(block)
            sha256.update(block)
    if (md5.hexdigest(), sha256.hexdigest()) != (known.md5, known.sha256):
        size, found = path.stat().st_size, md5.hexdigest()
        if path.suffix == ".part":
            path.unlink()
            path.with_suffix(".etag").unlink(missing_ok=True)
            advice = "It was deleted; repeat the command, or give another mirror with --url."
        else:
            advice = "Take it away, so that it is downloaded anew."
        raise UserError(f"{path} ({url}, {size} bytes) has MD5 {found}, expected {known.md5}. {advice}")


def unpack(archive: Path, out: Path, subset: str) -> None:
    """Unpacks into a folder beside the target and renames it last, so that the target is whole or absent."""
    work = out / f".{subset}.unpacking"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        extract_members(archive, work)
        source = work / "LibriSpeech"
        if not (source / subset).is_dir():
            raise UserError(f"{archive} holds no folder LibriSpeech/{subset}; it is another archive.")
        (out / "LibriSpeech").mkdir(exist_ok=True)
        for path in sorted(source.iterdir()):
            if path.is_file():
                path.replace(out / "LibriSpeech" / path.name)
        (source / subset).replace(out / "LibriSpeech" / subset)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def extract_members(archive: Path, work: Path) -> None:
    """Extracts plain files and folders below LibriSpeech/ through tarfile's data filter, within caps."""
    cap = MAX_RATIO * archive.stat().st_size + SPARE_BYTES
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for count, member in enumerate(tar, 1):
                total += member.size
                if count > MAX_MEMBERS or total > cap:
                    raise UserError(f"{archive} unpacks to more than {cap} bytes or {MAX_MEMBERS} files; refused.")
                parts = PurePosixPath(member.name).parts
                plain = (member.isfile() or member.isdir()) and parts[:1] == ("LibriSpeech",)
                if not plain:
                    raise UserError(
                        f"{archive} holds {member.name!r}, which is no plain file below LibriSpeech/; refused."
                    )
                tar.extract(member, work, filter="data")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}.") from error


@dataclass(frozen=True)
class Reader:
    """A line of SPEAKERS.TXT."""

    id: str
    sex: str
    subset: str
    minutes: float
    name: str


def read_speakers(folder: Path) -> list[Reader]:
    """Reads SPEAKERS.TXT, of which only the first four bars separate: one reader is called `|CBW|Simon`.

    An absent table gives an empty list; a line that is none raises UserError.
    """
    path = folder / "SPEAKERS.TXT"
    if not path.is_file():
        return []
    readers = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith(";"):
            continue
        fields = [field.strip() for field in line.split("|", 4)]
        try:
            readers.append(Reader(fields[0], fields[1], fields[2], float(fields[3]), fields[4]))
        except (IndexError, ValueError) as error:
            raise UserError(f"{path}, line {number}, is not ID | SEX | SUBSET | MINUTES | NAME: {line!r}.") from error
    return readers
