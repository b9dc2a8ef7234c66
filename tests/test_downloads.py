"""Files that are fetched, from a server on this machine that breaks off, stalls, lies and redirects."""

import gzip
import hashlib
import os
import socket
import threading

import numpy as np
import pytest
from serving import serving

from minires.data import downloads
from minires.data.downloads import Published, fetch

try:
    import resource
except ImportError:
    resource = None

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "TIMEOUT", 0.5)
    monkeypatch.setattr(downloads, "CHUNK", 4096)
    with serving() as running:
        running.files = {"/a/file.bin": CONTENT, "/b/file.bin": CONTENT}
        yield running


def published(server, *places, content=CONTENT, name="sub/file.bin", unpacked="", most=1_000_000):
    addresses = tuple(f"{server.address}{place}/file.bin" for place in places or ("a",))
    return Published(name, addresses, f"md5:{hashlib.md5(content).hexdigest()}", unpacked, most)


def test_fetched_once(server, tmp_path):
    for _ in range(2):
        path = fetch(published(server), tmp_path)
    assert path == str(tmp_path / "sub" / "file.bin") and (tmp_path / "sub" / "file.bin").read_bytes() == CONTENT
    assert server.asked == [("/a/file.bin", None)]


@pytest.mark.parametrize("manner", ["breaks off", "stalls"])
def test_a_download_that_breaks_off_goes_on(server, tmp_path, manner):
    server.manners["/a/file.bin"] = [manner, manner]
    assert open(fetch(published(server), tmp_path), "rb").read() == CONTENT
    ranges = [wanted for _, wanted in server.asked]
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in ranges[1:]]
    assert ranges[0] is None and 0 < starts[0] < starts[1] < len(CONTENT)
    assert os.listdir(tmp_path / "sub") == ["file.bin"]


def test_attempts_that_get_on_do_not_count(server, tmp_path):
    server.manners["/a/file.bin"] = ["breaks soon"] * 9
    assert downloads.ATTEMPTS < 9
    assert open(fetch(published(server), tmp_path), "rb").read() == CONTENT
    assert len(server.asked) == 10


def test_a_server_that_breaks_off_at_the_same_place_is_given_up(server, tmp_path):
    server.manners["/a/file.bin"] = ["breaks soon, ignores ranges"] * 99
    with pytest.raises(OSError, match="the connection broke off"):
        fetch(published(server), tmp_path)
    assert len(server.asked) == 1 + downloads.ATTEMPTS


@pytest.mark.skipif(resource is None, reason="no limits on the size of a file here")
def test_a_full_disk_is_said(server, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError) as refused:
            fetch(published(server, "a", "b"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(refused.value)
    assert message.startswith("cannot write file.bin: File too large\n") and "name another folder" in message
    assert f"from {server.address}a/file.bin\n" in message and str(tmp_path / "sub" / "file.bin") in message
    assert not os.listdir(tmp_path / "sub") and len(server.asked) == 1


def test_the_folder_of_files_is_a_file(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "file"))
    for name in ("file.bin", "sub/file.bin"):
        with pytest.raises(OSError, match="cannot write file.bin: .*\n  from http.*\n  to .*\n.*MINIRES_DATA"):
            fetch(published(server, name=name))
    assert (tmp_path / "file").read_text() == "kept" and not server.asked


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.manners["/a/file.bin"] = ["breaks off", "ignores ranges"]
    assert open(fetch(published(server), tmp_path), "rb").read() == CONTENT
    assert len(server.asked) == 2 and server.asked[1][1] is not None


def test_a_redirect_is_followed(server, tmp_path):
    server.manners["/a/file.bin"] = ["redirect"]
    assert open(fetch(published(server), tmp_path), "rb").read() == CONTENT


@pytest.mark.parametrize(
    "manner",
    ["404", "503", "wrong bytes", "no length", "breaks off", "stalls", "odd length", "great length", "endless"],
)
def test_the_next_mirror_is_asked(server, tmp_path, manner, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    monkeypatch.setattr(downloads, "CHUNK", 1 << 18)  # more than comes at once: no attempt gets on
    server.manners["/a/file.bin"] = [manner] * 2
    assert open(fetch(published(server, "a", "b"), tmp_path), "rb").read() == CONTENT
    assert server.asked[0][0] == "/a/file.bin" and server.asked[-1] == ("/b/file.bin", None)


@pytest.mark.parametrize(
    "manner, why",
    [
        ("404", "the server says 404 Not Found"),
        ("503", "the server says 503 Service Unavailable"),
        ("wrong bytes", "what came is another file"),
        ("no length", "what came is another file"),
        ("breaks off", "the connection broke off"),
        ("stalls", "no answer in 0.5 seconds"),
        ("odd length", "its Content-Length is no number: 'many'"),
        ("great length", "it sends more than 1,000,000 bytes"),
        ("endless", "it sends more than 1,000,000 bytes"),
    ],
)
def test_what_cannot_be_fetched_leaves_nothing_and_says_what_to_do(server, tmp_path, monkeypatch, manner, why):
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    monkeypatch.setattr(downloads, "CHUNK", 1 << 18)
    server.manners = {f"/{place}/file.bin": [manner] * 9 for place in "ab"}
    file = published(server, "a", "b")
    with pytest.raises(OSError) as refused:
        fetch(file, tmp_path)
    message = str(refused.value)
    for address in file.addresses:
        assert f"{address} ({why})" in message
    assert f"put it at {tmp_path / 'sub' / 'file.bin'}" in message
    assert f"MD5 {hashlib.md5(CONTENT).hexdigest()}" in message
    assert not os.listdir(tmp_path / "sub")


def test_without_a_network_it_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/file.bin"
        with pytest.raises(OSError) as refused:
            fetch(Published("file.bin", (address,), "md5:" + "0" * 32), str(tmp_path))
    assert str(refused.value) == (
        f"cannot fetch file.bin\n  from {address} (no connection):\n"
        f"get the file with MD5 {'0' * 32} elsewhere and put it at {tmp_path / 'file.bin'}"
    )


def test_two_at_once_do_not_disturb_each_other(server, tmp_path):
    """Whoever is last puts a whole file over a whole file."""
    barrier, failed = threading.Barrier(2), []

    def one():
        barrier.wait()
        try:
            assert open(fetch(published(server), tmp_path), "rb").read() == CONTENT
        except Exception as error:
            failed.append(error)

    both = [threading.Thread(target=one) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert not failed and os.listdir(tmp_path / "sub") == ["file.bin"]


def test_interrupting_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupt(*arguments):
        arguments[1].write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(published(server), tmp_path)
    assert not os.listdir(tmp_path / "sub")


def test_another_compression_of_the_same_content_is_the_file(server, tmp_path):
    content = b"the same content" * 1000
    ours, theirs = gzip.compress(content, 9, mtime=1), gzip.compress(content, 1, mtime=2)
    unpacked = "sha256:" + hashlib.sha256(content).hexdigest()
    server.files["/a/file.bin"] = theirs
    file = published(server, content=ours, unpacked=unpacked)
    assert open(fetch(file, tmp_path), "rb").read() == theirs
    assert not downloads.is_the_file(str(tmp_path / "sub" / "file.bin"), published(server, content=ours))
    for damaged in (theirs[:-1], theirs + b"x", b"no gzip", b""):
        (tmp_path / "sub" / "file.bin").write_bytes(damaged)
        with pytest.raises(OSError, match="is damaged .its checksum is not MD5"):
            fetch(file, tmp_path)


def test_a_gzip_bomb_is_not_unpacked_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "UNPACKED", 1 << 20)
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(5 << 20)))
    known = "sha256:" + hashlib.sha256(bytes(5 << 20)).hexdigest()
    assert not downloads.has_checksum(str(tmp_path / "bomb"), known, gzip.open)


def test_a_folder_that_cannot_be_made(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as refused:
        fetch(published(server), tmp_path / "file")
    assert str(tmp_path / "file") in str(refused.value) and not server.asked


def test_where_files_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path))
    assert downloads.cache_folder() == str(tmp_path)
    monkeypatch.delenv("MINIRES_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert downloads.cache_folder() == str(tmp_path / ".cache" / "minires")
