"""`bitwright data`: downloads from a server of this process, with stand-ins for the published files."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitwright import data
from bitwright.cli import data as command
from bitwright.cli.run import run
from bitwright.data import get, known_files
from bitwright.errors import InputError

MEMBERS = {"train": b"a" * 70_000 + bytes(range(256)) * 300, "test": b"b" * 3000, "meta": b"names"}
FOLDER = "cifar-100-python"


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tar(members: dict[str, bytes], more: Callable[[tarfile.TarFile], None] = lambda t: None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        more(archive)
    return out.getvalue()


def whole(members: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{FOLDER}/{name}": content for name, content in members.items()}


class Server(http.server.ThreadingHTTPServer):
    """contents: path -> bytes. ranges: whether it goes on in the middle. cut: after so many bytes it hangs up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.ranges, self.cut, self.asked = True, 0, []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        wanted = self.headers.get("Range")
        server.asked.append((self.path, wanted))
        content = server.contents.get(self.path[1:])
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + server.cut if server.cut else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """It has cifar100 as a tar and mnist as four .gz; the tables say so."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "BITWRIGHT_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        serve(found, monkeypatch, tar(whole(MEMBERS)))
        yield found
        found.shutdown()
        thread.join()


def serve(server: Server, monkeypatch: pytest.MonkeyPatch, archive: bytes, digest: str = "") -> None:
    digests = {name: md5(content) for name, content in MEMBERS.items()}
    monkeypatch.setitem(known_files.LAYOUTS, "cifar100", known_files.Layout(FOLDER, digests))
    server.contents["c.tar.gz"] = archive
    entry = get.Archive("c.tar.gz", digest or md5(archive), (server.address + "c.tar.gz",), digests)
    monkeypatch.setitem(get.SOURCES, "cifar100", (entry,))


def everything(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def fails(root: Path, code: str, *texts: str, name: str = "cifar100") -> None:
    with pytest.raises(InputError) as caught:
        get.get(name, root)
    message = str(caught.value)
    assert caught.value.code == code and "\n" not in message, message
    assert all(text in message for text in texts), message


# ---- get ----


def test_a_set_in_a_tar(server: Server, tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    root = tmp_path / "new" / "ä folder"
    folder = get.get("cifar100", root, lambda *step: seen.append(step))
    assert folder == root / FOLDER and everything(root) == whole(MEMBERS)
    size = len(server.contents["c.tar.gz"])
    assert seen[-1] == ("c.tar.gz", size, size)
    assert [row.status for row in data.check("cifar100", root)] == ["ok"] * 3


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path):
    get.get("cifar100", tmp_path)
    count = len(server.asked)
    get.get("cifar100", tmp_path)
    assert len(server.asked) == count
    (tmp_path / FOLDER / "test").write_bytes(b"damaged")
    get.get("cifar100", tmp_path)
    assert len(server.asked) == count + 1 and everything(tmp_path) == whole(MEMBERS)


def test_four_files_by_themselves(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    names = list(known_files.LAYOUTS["mnist"].md5)
    contents = {name: name.encode() * 50 for name in names}
    layout = known_files.Layout("MNIST/raw", {n: md5(c) for n, c in contents.items()}, zipped=True)
    monkeypatch.setitem(known_files.LAYOUTS, "mnist", layout)
    archives = []
    for name, content in contents.items():
        server.contents[f"{name}.gz"] = packed = gzip.compress(content)
        addresses = (f"{server.address}not/there/{name}.gz", f"{server.address}{name}.gz")  # the second one helps
        archives.append(get.Archive(f"{name}.gz", md5(packed), addresses, {name: md5(content)}))
    monkeypatch.setitem(get.SOURCES, "mnist", tuple(archives))
    get.get("mnist", tmp_path)
    assert everything(tmp_path) == {f"MNIST/raw/{n}": c for n, c in contents.items()}
    # one of them packed, as torchvision may leave it: it counts
    (tmp_path / "MNIST/raw" / f"{names[0]}.gz").write_bytes(gzip.compress(contents[names[0]]))
    (tmp_path / "MNIST/raw" / names[0]).unlink()
    count = len(server.asked)
    get.get("mnist", tmp_path)
    assert len(server.asked) == count


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(ranges: bool, server: Server, tmp_path: Path):
    """Where the server can; else it begins anew. Either way the set is whole."""
    server.cut = 150
    fails(tmp_path, "data-offline", "broken off after 150 of", "the same command goes on")
    assert not (tmp_path / FOLDER).exists() and len(everything(tmp_path)) == 1
    server.cut, server.ranges = 0, ranges
    get.get("cifar100", tmp_path)
    assert server.asked[-1] == ("/c.tar.gz", "bytes=150-") and everything(tmp_path) == whole(MEMBERS)


def test_a_part_of_something_else_is_fetched_anew(server: Server, tmp_path: Path):
    part = tmp_path / ".cifar100-c.tar.gz.part"
    for junk in (b"x" * 100, b"x" * 10_000_000):  # shorter, and longer than the archive
        part.write_bytes(junk)
        get.get("cifar100", tmp_path)
        assert server.asked[-1] == ("/c.tar.gz", None) and everything(tmp_path) == whole(MEMBERS)
        (tmp_path / FOLDER / "meta").unlink()


def test_a_complete_part_is_used(server: Server, tmp_path: Path):
    (tmp_path / ".cifar100-c.tar.gz.part").write_bytes(server.contents["c.tar.gz"])
    get.get("cifar100", tmp_path)
    assert everything(tmp_path) == whole(MEMBERS)


def test_an_archive_with_another_md5(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    serve(server, monkeypatch, tar(whole(MEMBERS)), digest="0" * 32)
    fails(tmp_path, "data-offline", "its MD5 is not the published one")
    assert everything(tmp_path) == {}


def test_a_file_with_another_md5(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Archive as promised, content not: the old files stay."""
    old = tmp_path / FOLDER / "meta"
    old.parent.mkdir()
    old.write_bytes(b"old")
    serve(server, monkeypatch, tar(whole({**MEMBERS, "test": b"other"})))
    fails(tmp_path, "data-damaged", "holds no test with the published MD5", "nothing was changed")
    assert old.read_bytes() == b"old"
    serve(server, monkeypatch, tar(whole({"train": MEMBERS["train"]})))
    fails(tmp_path, "data-damaged", "holds no test")
    serve(server, monkeypatch, b"no archive at all")
    fails(tmp_path, "data-damaged", "cannot be unpacked")
    assert set(everything(tmp_path / FOLDER)) == {"meta"}


def test_nothing_else_of_an_archive_comes_out(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Paths that lead outside, links, other files, a folder with a member's name."""

    def hostile(archive: tarfile.TarFile) -> None:
        for name in ("../outside", "/tmp/bitwright-outside", f"{FOLDER}/../../outside", f"{FOLDER}/extra", "x/train"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"evil"))
        link = tarfile.TarInfo(f"{FOLDER}/train")
        link.type, link.linkname = tarfile.SYMTYPE, "../../outside"
        archive.addfile(link)
        folder = tarfile.TarInfo(f"{FOLDER}/meta")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)

    serve(server, monkeypatch, tar(whole(MEMBERS), hostile))
    root = tmp_path / "deep" / "root"
    get.get("cifar100", root)
    assert everything(tmp_path) == {f"deep/root/{k}": v for k, v in whole(MEMBERS).items()}
    assert not Path("/tmp/bitwright-outside").exists()


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path):
    address = server.address
    server.shutdown()
    server.server_close()
    fails(tmp_path, "data-offline", "could not get c.tar.gz", address, "put the files into")
    assert everything(tmp_path) == {}


def test_a_full_disk_and_a_folder_that_cannot_be(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(get.shutil, "disk_usage", lambda path: usage)
    fails(tmp_path, "data-space", "--root")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        get.get("mnist", tmp_path / "file")
    assert caught.value.code == "data-write"


def test_unknown_set(tmp_path: Path):
    fails(tmp_path, "data-unknown", "Nearest: mnist.", name="minst")


def test_the_tables_agree_with_what_load_reads():
    """Every file that is checked is fetched, under the same digest, from an encrypted address first."""
    assert set(get.SOURCES) == {*known_files.LAYOUTS, "svhn-extra"}
    for name in known_files.LAYOUTS:
        archives = (*get.SOURCES[name], *get.SOURCES.get(f"{name}-extra", ()))
        fetched = {file: digest for archive in archives for file, digest in archive.members.items()}
        assert known_files.LAYOUTS[name].md5.items() <= fetched.items()
        assert all(a.addresses[0].startswith("https://") and len(a.md5) == 32 for a in archives)
        assert all(address.endswith(a.name) for a in archives for address in a.addresses)


def test_files_that_are_not_packed_go_to_the_last_root(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """SVHN: a file is its own archive; the large part has a name of its own."""
    contents = {f"{s}_32x32.mat": s.encode() * 900 for s in ("train", "test", "extra")}
    digests = {name: md5(content) for name, content in contents.items()}
    monkeypatch.setitem(known_files.LAYOUTS, "svhn", known_files.Layout("", digests, optional=("extra_32x32.mat",)))
    for key, names in (("svhn", ("train_32x32.mat", "test_32x32.mat")), ("svhn-extra", ("extra_32x32.mat",))):
        archives = tuple(get.Archive(n, digests[n], (server.address + n,), {n: digests[n]}) for n in names)
        monkeypatch.setitem(get.SOURCES, key, archives)
    server.contents |= contents
    first, last = tmp_path / "first", tmp_path / "last"
    monkeypatch.setenv("BITWRIGHT_DATA", f"{first}{os.pathsep}{last}")
    assert run(["data", "get", "svhn"]) == 0
    assert everything(last) == {n: contents[n] for n in ("train_32x32.mat", "test_32x32.mat")} and not first.exists()
    assert run(["data", "check", "svhn"]) == 0
    assert run(["data", "get", "svhn-extra"]) == 0
    assert everything(last) == contents
    assert len(data.check("svhn")) == 3
    server.contents["train_32x32.mat"] = b"another"
    (last / "train_32x32.mat").unlink()
    assert run(["data", "get", "svhn"]) == 2
    assert "its MD5 is not the published one" in capsys.readouterr().err and not (last / "train_32x32.mat").exists()
    assert run(["data", "get", "imagenet"]) == 2 and "image-net.org" in capsys.readouterr().err


# ---- the commands ----


def test_get_command(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "get", "cifar100", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"done  cifar100: 50,000 / 10,000 images in {tmp_path / FOLDER}\n"
    assert "c.tar.gz  100 % of" in shown.err and "\r" not in shown.err
    assert run(["data", "get", "cifar100", "--root", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["get"] == {"name": "cifar100", "folder": str(tmp_path / FOLDER), "downloaded": False}
    assert run(["data", "get", "digits"]) == 0 and "embedded" in capsys.readouterr().out
    assert run(["data", "get", "cifar", "--root", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "Nearest: cifar10" in shown.err


def test_check_command(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "check", "cifar100", "--root", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert f"looked in {tmp_path / FOLDER}".replace(" ", "") in "".join(shown.out.split())  # it may be wrapped
    assert "next:   bitwright data get cifar100" in shown.err
    get.get("cifar100", tmp_path)
    assert run(["data", "check", "cifar100", "--root", str(tmp_path)]) == 0
    assert "md5aspublished" in "".join(capsys.readouterr().out.split())
    (tmp_path / FOLDER / "test").write_bytes(b"damaged")
    assert run(["data", "check", "--root", str(tmp_path), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    found = {row["name"]: row["status"] for row in answer["sets"]}
    assert found == {
        "digits": "ok", "mnist": "missing", "fashion-mnist": "missing", "cifar10": "missing", "cifar100": "damaged",
        "svhn": "missing", "stl10": "missing", "imagenet": "missing",
    }  # fmt: skip
    assert answer["status"] == "damaged" and answer["next"][0] == "bitwright data get cifar100"
    (tmp_path / FOLDER / "test").unlink()
    assert run(["data", "check", "cifar100", "--root", str(tmp_path)]) == 1
    assert "partial" in capsys.readouterr().out


def test_missing_sets_alone_are_no_failure(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "check", "--root", str(tmp_path)]) == 0
    assert "1,437 / 360" in capsys.readouterr().out
    assert run(["data", "check", "cifar11"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: data: unknown set 'cifar11'")


def test_show_command(capsys: pytest.CaptureFixture[str]):
    argv = ["data", "show", "digits", "--seconds", "0.02"]
    assert run(argv) == 0
    out = capsys.readouterr().out
    assert "1,437 train / 360 test images of 1x8x8" in out and "0.3058" in out and "img/s" in out
    assert run([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["set"]
    train = data.load("digits")
    assert found["train_images_per_class"] == train.labels.bincount().tolist()
    assert found["shape"] == [1, 8, 8] and found["loader_images_per_s"] > 0 and len(found["classes"]) == 10


def test_counts_are_those_of_the_sets():
    assert set(command.IMAGES) == set(data.names())
    assert command.IMAGES["digits"] == (len(data.load("digits")), len(data.load("digits", split="test")))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", [n for n in data.names() if n != "digits"])
def test_counts_of_the_real_sets(name: str):
    try:
        sizes = tuple(len(data.load(name, split=split)) for split in ("train", "test"))
    except InputError as error:
        pytest.skip(str(error))
    assert command.IMAGES[name] == sizes
