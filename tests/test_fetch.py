"""Fetching open sets from a real server on loopback that misbehaves in every way; unpacking archives that do, too."""

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pooch
import pytest

from stf2m_core.__main__ import main
from stf2m_core.data import archives
from stf2m_core.data.archives import unpack
from stf2m_core.data.fetch import fetch
from stf2m_core.data.manifest import load_manifest
from stf2m_core.errors import ManifestError

CONTENT = bytes(range(256)) * 4096
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Server:
    """Serves CONTENT; `answers` are ways of misbehaving, used up one per request, after which it behaves."""

    def __init__(self):
        self.answers, self.ranges, self.released, self.pages = [], [], threading.Event(), {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.ranges.append(self.headers.get("Range"))
                outer.answer(self, outer.answers.pop(0) if outer.answers else "well")

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request, how):
        if isinstance(how, int):
            request.send_error(how)
            return
        content = self.pages.get(request.path, CONTENT)
        start = int((self.ranges[-1] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        start = 0 if how == "no ranges" else start
        if start > 0 and start >= len(content):
            request.send_error(416)
            return
        if how == "wrong bytes":
            content = content[::-1]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start + (7 if how == "wrong length" else 0)))
        request.end_headers()
        request.wfile.write(content[start:HALF] if how in ("stalls", "hangs up") else content[start:])
        request.wfile.flush()
        if how == "stalls":
            self.released.wait(10)
        request.close_connection = True


@pytest.fixture
def server():
    server = Server()
    yield server
    server.released.set()
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def manifests(tmp_path, server):
    """`write(**facts)` writes a manifest with one download of these facts and returns its folder."""

    def write(head="", **facts):
        facts = {"file": "data.bin", "url": f"{server.url}/data.bin"} | facts
        lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items() if value is not None]
        folder = tmp_path / "manifests"
        folder.mkdir(exist_ok=True)
        (folder / "toy.toml").write_text(
            'name = "toy"\ntitle = "Toy"\ncitation = "Someone"\nlicence = "CC0"\naccess = "Ask at the desk."\n'
            f'adapter = "folder"\n{head}\n[modalities]\n' + ("[[download]]\n" + "\n".join(lines) if facts else "")
        )
        return folder

    return write


def get(folder, manifests, tries=2, **settings):
    return fetch("toy", folder, manifests=manifests, tries=tries, timeout_s=0.5, progress=False, **settings)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_checked_ever_after(tmp_path, server, manifests):
    folder = get(tmp_path / "data", manifests(hash=SHA256, size=len(CONTENT)))
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert names(folder) == ["data.bin"]
    get(folder, manifests(hash=SHA256))
    assert len(server.ranges) == 1
    (folder / "data.bin").write_bytes(CONTENT[::-1])
    get(folder, manifests(hash=SHA256))
    assert (folder / "data.bin").read_bytes() == CONTENT


def test_a_file_of_unknown_hash_and_wrong_length_is_fetched_again(tmp_path, server, manifests):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.bin").write_bytes(b"half")
    get(folder, manifests(size=len(CONTENT)))
    assert (folder / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("trouble", ["stalls", "hangs up"])
def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path, server, manifests, trouble):
    server.answers = [trouble]
    folder = get(tmp_path / "data", manifests(hash=SHA256))
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_the_next_call_goes_on_where_the_last_one_gave_up(tmp_path, server, manifests):
    server.answers = ["hangs up"]
    with pytest.raises(ManifestError, match="data.bin could not be fetched in 1 tries: .*Call again; what has come is"):
        get(tmp_path / "data", manifests(hash=SHA256), tries=1)
    assert names(tmp_path / "data") == [".data.bin.part"]
    get(tmp_path / "data", manifests(hash=SHA256))
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert names(tmp_path / "data") == ["data.bin"]


def test_without_a_hash_a_broken_transfer_begins_anew_since_the_file_may_have_changed(tmp_path, server, manifests):
    server.answers = ["hangs up"]
    folder = get(tmp_path / "data", manifests(hash=None))
    assert server.ranges == [None, None]
    assert (folder / "data.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(tmp_path, server, manifests):
    server.answers = ["hangs up", "no ranges"]
    folder = get(tmp_path / "data", manifests(hash=SHA256))
    assert (folder / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"too long"])
def test_a_part_that_is_whole_is_taken_and_one_that_is_too_long_begins_anew(tmp_path, server, manifests, part):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".data.bin.part").write_bytes(part)
    folder = get(tmp_path / "data", manifests(hash=SHA256))
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert server.ranges[0] == f"bytes={len(part)}-"  # answered by 416
    assert names(folder) == ["data.bin"]


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(tmp_path, server, manifests):
    server.answers = [503]
    get(tmp_path / "data", manifests(hash=SHA256))
    assert len(server.ranges) == 2
    server.answers = [404, 404]
    with pytest.raises(ManifestError, match=r"the server answers 404 Not Found for data.bin \(in http://127.0.0.1"):
        get(tmp_path / "other", manifests(hash=SHA256))
    assert len(server.ranges) == 3
    assert names(tmp_path / "other") == []


def test_wrong_bytes_and_wrong_lengths_are_never_kept(tmp_path, server, manifests):
    server.answers = ["wrong bytes"] * 2
    with pytest.raises(ManifestError, match="data.bin came with other bytes than stated in each of 2 tries"):
        get(tmp_path / "data", manifests(hash=SHA256))
    with pytest.raises(ManifestError, match=f"the server offers {len(CONTENT)} bytes of data.bin; expected 5, as the"):
        get(tmp_path / "data", manifests(hash=SHA256, size=5))
    server.answers = ["wrong length"]
    with pytest.raises(ManifestError, match="data.bin could not be fetched in 1 tries"):
        get(tmp_path / "data", manifests(), tries=1)
    assert "data.bin" not in names(tmp_path / "data")


def test_a_server_that_is_not_there_is_one_sentence(tmp_path, server, manifests):
    folder = manifests(url="http://127.0.0.1:9/data.bin", hash=SHA256)
    with pytest.raises(ManifestError, match="data.bin could not be fetched in 1 tries: .*refused"):
        get(tmp_path / "data", folder, tries=1)


def test_a_gated_set_is_explained_and_so_is_one_that_cannot_be_fetched(tmp_path, manifests):
    with pytest.raises(ManifestError, match="toy is given out by its owners on request only. Ask at the desk."):
        get(tmp_path / "data", manifests("gated = true"))
    with pytest.raises(ManifestError, match="ravdess_features cannot be fetched by the kit. The recordings are free"):
        fetch("ravdess_features", tmp_path / "data")
    with pytest.raises(ManifestError, match="file 'date.bin' is unknown.*Did you mean 'data.bin'"):
        get(tmp_path / "data", manifests(), files=["date.bin"])
    assert not (tmp_path / "data").exists()


def test_a_disk_that_cannot_be_written_is_one_sentence(tmp_path, manifests):
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(ManifestError, match="data cannot be made: File exists"):
        get(tmp_path / "data", manifests(hash=SHA256))
    (tmp_path / "more" / "data.bin").mkdir(parents=True)
    with pytest.raises(ManifestError, match="data.bin cannot be written: Is a directory"):
        get(tmp_path / "more", manifests(hash=SHA256), tries=1)


def test_a_full_disk_is_one_sentence(tmp_path, manifests):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".data.bin.part").symlink_to("/dev/full")
    with pytest.raises(ManifestError, match="data.bin cannot be written: No space left on device.*Make room and call"):
        get(tmp_path / "data", manifests(hash=SHA256), tries=1)
    assert names(tmp_path / "data") == [".data.bin.part"]


@pytest.mark.parametrize("listed", [True, False])
def test_a_file_without_address_comes_from_the_repository_behind_the_doi(
    tmp_path, server, manifests, monkeypatch, listed
):
    """The repository is asked as it is in the world; only its addresses are those of loopback."""
    monkeypatch.setattr(pooch.downloaders, "doi_to_url", lambda doi, **_: "https://zenodo.org/records/77")
    monkeypatch.setattr(pooch.downloaders.ZenodoRepository, "base_api_url", f"{server.url}/api/records")
    file = {"key": "data.bin" if listed else "other.bin", "links": {"self": f"{server.url}/data.bin"}}
    file["checksum"] = "md5:" + hashlib.md5(CONTENT).hexdigest()
    server.pages["/api/records/77"] = json.dumps({"id": 77, "files": [file]}).encode()
    folder = manifests('doi = "10.5281/zenodo.77"', url=None)
    if listed:
        get(tmp_path / "data", folder)
        assert (tmp_path / "data" / "data.bin").read_bytes() == CONTENT
        server.answers, before = ["wrong bytes"] * 2, len(server.ranges)
        (tmp_path / "data" / "data.bin").unlink()
        with pytest.raises(ManifestError, match="came with other bytes than stated"):
            server.answers.insert(0, "well")
            get(tmp_path / "data", folder)
        assert len(server.ranges) == before + 3
    else:
        with pytest.raises(ManifestError, match="data.bin is not at doi 10.5281/zenodo.77; expected other.bin"):
            get(tmp_path / "data", folder)


def test_a_doi_that_cannot_be_looked_up_says_so_and_how_else_to_get_the_data(tmp_path, server, manifests, monkeypatch):
    monkeypatch.setattr(pooch.downloaders, "doi_to_url", lambda doi, **_: "https://zenodo.org/records/77")
    monkeypatch.setattr(pooch.downloaders.ZenodoRepository, "base_api_url", f"{server.url}/api/records")
    server.pages["/api/records/77"] = b"<html>out of order</html>"
    with pytest.raises(ManifestError, match="doi 10.5281/zenodo.77 cannot be looked up.*Ask at the desk"):
        get(tmp_path / "data", manifests('doi = "10.5281/zenodo.77"', url=None))


def test_what_the_kit_says_can_be_fetched_is_where_it_says():
    manifest = load_manifest("ravdess")
    assert [facts.file for facts in manifest.download] == [
        "Audio_Speech_Actors_01-24.zip",
        "Audio_Song_Actors_01-24.zip",
    ]
    assert all(facts.unpack and manifest.doi == "10.5281/zenodo.1188976" for facts in manifest.download)


def test_the_command_line_says_in_one_sentence_why_a_set_cannot_be_fetched(tmp_path, capsys):
    assert main(["fetch", "ravdess_features", "--to", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.startswith("ravdess_features cannot be fetched by the kit. The recordings are free")


# Archives


def zipped(path, *names, links=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
    return path


def tarred(path, *names, links=()):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(f"content of {name}")
            archive.addfile(info, io.BytesIO(f"content of {name}".encode()))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return path


both = pytest.mark.parametrize("pack", [zipped, tarred])


@both
def test_an_archive_is_unpacked_and_what_is_there_is_left_alone(tmp_path, pack):
    archive = pack(tmp_path / "a.pack", "Actor_01/a.wav", "Actor_02/b.wav")
    files = unpack(archive, tmp_path / "out") if (tmp_path / "out").mkdir() is None else []
    assert [file.relative_to(tmp_path / "out").as_posix() for file in files] == ["Actor_01/a.wav", "Actor_02/b.wav"]
    assert files[1].read_text() == "content of Actor_02/b.wav"
    files[0].write_text("x")
    stamp = files[1].stat().st_mtime_ns
    unpack(archive, tmp_path / "out")
    assert files[0].read_text() == "content of Actor_01/a.wav"
    assert files[1].stat().st_mtime_ns == stamp


def test_a_fetched_archive_is_unpacked_beside_it(tmp_path, server, manifests):
    content = zipped(tmp_path / "a.zip", "Actor_01/a.wav").read_bytes()
    server.pages["/a.zip"] = content
    digest = "md5:" + hashlib.md5(content).hexdigest()
    folder = get(tmp_path / "data", manifests(file="a.zip", url=f"{server.url}/a.zip", hash=digest, unpack=True))
    assert (folder / "Actor_01" / "a.wav").read_text() == "content of Actor_01/a.wav"


@both
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:/evil"])
def test_an_archive_with_a_name_that_leads_out_writes_nothing_at_all(tmp_path, pack, name):
    archive = pack(tmp_path / "a.pack", "good", name)
    (tmp_path / "out").mkdir()
    with pytest.raises(ManifestError, match="leads out of the folder; expected names inside it.*Nothing was unpacked"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path / "out") == []
    assert names(tmp_path) == ["a.pack", "out"]


@both
def test_an_archive_with_a_link_writes_nothing_at_all(tmp_path, pack):
    archive = pack(tmp_path / "a.pack", "good", links=["passwords"])
    (tmp_path / "out").mkdir()
    with pytest.raises(ManifestError, match="'passwords' is a link or a device; expected plain files"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_an_archive_does_not_write_through_a_link_that_is_there(tmp_path):
    archive = zipped(tmp_path / "a.zip", "sub/file")
    for folder in ("out", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="'sub/file' leads out of the folder by a link"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path / "elsewhere") == []


@both
def test_a_damaged_archive_is_refused_and_leaves_no_half_file(tmp_path, pack):
    archive = pack(tmp_path / "a.pack", "one", "two")
    content = bytearray(archive.read_bytes())
    content[40 if pack is zipped else len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(ManifestError, match="a.pack cannot be unpacked: .*Remove it and get it again"):
        unpack(archive, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert path.read_text() == f"content of {path.name}"
    archive.write_bytes(b"no archive")
    with pytest.raises(ManifestError, match="a.pack cannot be unpacked"):
        unpack(archive, tmp_path / "out")


def test_an_archive_larger_than_the_room_writes_nothing(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip", "file")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 3}))
    with pytest.raises(ManifestError, match="a.zip holds 15 bytes and 3 are free.*Make room and call again"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path / "out") == []
