"""Manifests: strict reading, recognising folders, and the import of a data set as a pack."""

import hashlib
import json
import sys
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stf2m_core.data import manifest as manifest_module
from stf2m_core.data.manifest import find, import_dataset, load_manifest, manifest_folder, read_manifest
from stf2m_core.data.pack import RaggedViews, open_pack
from stf2m_core.data.reading import Reading
from stf2m_core.errors import ConfigError, ManifestError, PackError

CONTENT = b"some numbers"
GOOD = f"""
name = "toy"
title = "Toy set"
citation = "Someone 2020"
licence = "CC0"
access = "Ask for it"
adapter = "toy"
labels = ["calm", "joy"]
notes = ["A toy."]

[modalities.audio]
nodes = ["band0..band1"]
channels = ["power"]
rate_hz = 10
description = "power"

[[files]]
path = "numbers.bin"
size = {len(CONTENT)}
sha256 = "{hashlib.sha256(CONTENT).hexdigest()}"
"""


def toy_clips():
    columns = {"clip_id": ["a", "b"], "subject": ["s", "t"], "group": "g", "domain": "d", "duration_s": 0.2}
    return pd.DataFrame(columns | {"label": ["joy", ""], "split": "", "text": ""})


def toy_views(**changes):
    facts = {"nodes": ("band0", "band1"), "channels": ("power",), "rate_hz": 10.0} | changes
    values = np.ones((2, len(facts["nodes"]), len(facts["channels"])), np.float32)
    values[1, 0, 0] = np.nan
    return {"audio": RaggedViews(values, np.array([0, 2, 2]), **facts)}


def one_clip():
    return {"audio": replace(toy_views()["audio"], offsets=np.array([0, 2]))}


@pytest.fixture
def manifests(tmp_path):
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "toy.toml").write_text(GOOD)
    return folder


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    (folder / "numbers.bin").write_bytes(CONTENT)
    return folder


@pytest.fixture
def adapter(monkeypatch):
    """A module with a read function, as if it lay among the adapters."""

    def read(source, manifest, *, louder=False):
        text = RaggedViews(np.ones((1, 1, 1), np.float32), np.array([0, 0, 1]), ("w",), ("c",), 1.0)
        return toy_clips(), module.views | ({"text": text} if module.with_text else {})

    module = types.ModuleType("stf2m_core.data.adapters.toy")
    module.read, module.views, module.with_text = read, toy_views(), False
    monkeypatch.setattr(manifest_module, "_adapter", lambda manifest: module)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def with_text(manifests):
    more = '[modalities.text]\nnodes = ["w"]\nchannels = ["c"]\nrate_hz = 1.0\ndescription = "words"\n'
    (manifests / "toy.toml").write_text(GOOD.replace("[[files]]", more + "[[files]]"))


# Reading


def test_a_manifest_is_read_as_written(manifests):
    manifest = load_manifest("toy", manifests=manifests)
    assert (manifest.name, manifest.title, manifest.labels, manifest.notes) == (
        "toy",
        "Toy set",
        ("calm", "joy"),
        ("A toy.",),
    )
    audio = manifest.modalities["audio"]
    assert (audio.nodes, audio.channels, audio.rate_hz) == (("band0", "band1"), ("power",), 10.0)
    assert (manifest.files[0].path, manifest.files[0].size) == ("numbers.bin", len(CONTENT))


def test_optional_keys_may_be_left_out(manifests):
    text = GOOD[: GOOD.index("[[files]]")].replace("rate_hz = 10\n", "").replace('notes = ["A toy."]\n', "")
    (manifests / "toy.toml").write_text(text)
    manifest = load_manifest("toy", manifests=manifests)
    assert (manifest.files, manifest.notes, manifest.modalities["audio"].rate_hz) == ((), (), None)


FULL = """
doi = "10.1234/abc"
gated = true
homepage = "https://example.org"
subjects = "Two people"
needs = ["*.wav | */*.wav", "list.csv"]

[splits]
train = "the first"

[[bad_clips]]
clip = "a"
reason = "silent"

[[download]]
file = "all.zip"
size = 12
hash = "md5:0123456789abcdef0123456789abcdef"
unpack = true

[[download]]
file = "more.zip"
url = "https://example.org/more.zip"
"""


def full(manifests, **changes):
    """The good manifest with all that is optional; the keys of tables must come after the plain ones."""
    text = FULL
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    plain, tables = text.split("\n[splits]")
    head, rest = GOOD.split("[modalities.audio]")
    (manifests / "toy.toml").write_text(head + plain + "\n[splits]" + tables + "\n[modalities.audio]" + rest)
    return load_manifest("toy", manifests=manifests)


def test_what_a_manifest_may_say_besides_is_read(manifests):
    manifest = full(manifests)
    assert (manifest.doi, manifest.gated, manifest.homepage) == ("10.1234/abc", True, "https://example.org")
    assert (manifest.subjects, manifest.splits) == ("Two people", {"train": "the first"})
    assert manifest.bad_clips == {"a": "silent"}
    assert manifest.needs == ("*.wav | */*.wav", "list.csv")
    first, second = manifest.download
    assert (first.file, first.url, first.size, first.unpack) == ("all.zip", None, 12, True)
    assert (second.url, second.hash, second.unpack) == ("https://example.org/more.zip", None, False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('doi = "10.1234/abc"', "", "all.zip has no url; expected a url, or a doi"),
        ("https://example.org/more", "ftp://example.org/more", "url is 'ftp://example.org/more.zip'; expected http"),
        ("md5:0123456789abcdef", "md5:01", "hash of all.zip is 'md5:010123456789abcdef'; expected md5: or sha256:"),
        ("list.csv", "../list.csv", "path '../list.csv' leads out of the data set"),
        ("*/*.wav", "/*.wav", r"path '\*.wav \| /\*.wav' leads out of the data set"),
        ('"all.zip"', '"/etc/all.zip"', "path '/etc/all.zip' leads out of the data set"),
        ('train = "the first"', "train = 3", "train is 3; expected a text"),
        ("gated = true", 'gated = "yes"', "gated is 'yes'; expected true or false"),
        ('reason = "silent"', 'why = "silent"', "key 'why' is unknown; .*bad_clips"),
    ],
)
def test_a_malformed_optional_key_is_refused(manifests, old, new, message):
    with pytest.raises(ManifestError, match=message):
        full(manifests, **{old: new})


def test_nodes_without_channels_are_refused_and_neither_is_fine(manifests):
    (manifests / "toy.toml").write_text(GOOD.replace('channels = ["power"]\n', ""))
    with pytest.raises(ManifestError, match="key 'channels' is missing; expected nodes and channels, or neither"):
        load_manifest("toy", manifests=manifests)
    bare = GOOD.replace('channels = ["power"]\n', "optional = true\n").replace('nodes = ["band0..band1"]\n', "")
    (manifests / "toy.toml").write_text(bare)
    audio = load_manifest("toy", manifests=manifests).modalities["audio"]
    assert (audio.nodes, audio.channels, audio.optional) == ((), (), True)


BAD_MANIFESTS = {
    r"key 'licens' is unknown; expected .*Did you mean 'licence'": ('licence = "CC0"', 'licens = "CC0"'),
    r"key 'node' is unknown; .*modalities.audio.*Did you mean 'nodes'": ("nodes =", "node ="),
    r"key 'sha265' is unknown; .*files.*Did you mean 'sha256'": ("sha256 =", "sha265 ="),
    r"key 'citation' is missing": ('citation = "Someone 2020"\n', ""),
    r"key 'description' is missing; .*modalities.audio": ('description = "power"\n', ""),
    r"key 'path' is missing": ('path = "numbers.bin"\n', ""),
    r"title is 3; expected a text": ('title = "Toy set"', "title = 3"),
    r"labels is 'joy'; expected a list": ('labels = ["calm", "joy"]', 'labels = "joy"'),
    r"rate_hz is True; expected a number": ("rate_hz = 10", "rate_hz = true"),
    r"size is 1.5; expected a whole number": (f"size = {len(CONTENT)}", "size = 1.5"),
    r"names are \['joy', 'joy'\]; expected different names": ('["calm", "joy"]', '["joy", "joy"]'),
    r"name 3 is no text": ('["calm", "joy"]', '["joy", 3]'),
    r"name is 'tox'; expected 'toy', the name of its file": ('name = "toy"', 'name = "tox"'),
    r"adapter is '../evil'; expected the name of a module": ('adapter = "toy"', 'adapter = "../evil"'),
    r"path '../numbers.bin' leads out of the data set": ('"numbers.bin"', '"../numbers.bin"'),
    r"path '/numbers.bin' leads out of the data set": ('"numbers.bin"', '"/numbers.bin"'),
    r"sha256 of numbers.bin is 'abc'; expected 64 hex digits": (hashlib.sha256(CONTENT).hexdigest(), "abc"),
    r"the manifest is not TOML": ('name = "toy"', "name = toy"),
}


@pytest.mark.parametrize("message", BAD_MANIFESTS)
def test_a_malformed_manifest_is_refused(manifests, message):
    old, new = BAD_MANIFESTS[message]
    assert old in GOOD
    (manifests / "toy.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(ManifestError, match=message):
        load_manifest("toy", manifests=manifests)


def test_an_unknown_data_set_is_refused_and_the_nearest_named(manifests):
    with pytest.raises(ManifestError, match="data set 'toi' is unknown; expected toy .*Did you mean 'toy'"):
        load_manifest("toi", manifests=manifests)


def test_a_missing_folder_of_manifests_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="there is no folder .*nowhere; expected a folder of manifests"):
        manifest_folder(tmp_path / "nowhere")


def test_an_adapter_that_is_not_there_is_refused(manifests, source, tmp_path):
    with pytest.raises(ManifestError, match="adapter 'toy' is unknown; expected .*ravdess_features or .*synemo"):
        import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests)


@pytest.mark.parametrize("path", sorted(manifest_folder().glob("*.toml")), ids=lambda path: path.stem)
def test_every_manifest_of_the_kit_is_sound_and_has_its_adapter(path):
    manifest = read_manifest(path)
    assert callable(manifest_module._adapter(manifest).read)
    assert f"`{manifest.name}`" in (manifest_folder() / "README.md").read_text()


# Recognising folders


@pytest.mark.parametrize("above", [False, True])
def test_a_data_set_is_found_in_the_folder_and_in_its_subfolders(manifests, source, above):
    found = find(source.parent if above else source, manifests=manifests)
    assert [(manifest.name, place) for manifest, place in found] == [("toy", source)]


def test_a_folder_without_a_known_data_set_is_refused(manifests, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"empty holds no known data set; expected toy \(numbers.bin\)"):
        find(tmp_path / "empty", manifests=manifests)


def test_a_folder_with_a_like_named_file_of_another_size_is_refused_and_the_sizes_named(manifests, source):
    (source / "numbers.bin").write_bytes(CONTENT + b"!")
    with pytest.raises(ManifestError, match="is not toy: numbers.bin has 13 bytes and not 12"):
        find(source, manifests=manifests)


def test_a_folder_that_is_not_there_is_refused(manifests, tmp_path):
    with pytest.raises(ManifestError, match="there is no folder .*nowhere"):
        find(tmp_path / "nowhere", manifests=manifests)


# Import


def test_an_import_makes_a_pack_and_reports_it(manifests, source, adapter, tmp_path):
    with_text(manifests)
    adapter.with_text = True
    report = import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests, louder=True)
    pack = open_pack(report.pack, verify="full")
    assert (pack.name, pack.title, pack.licence, pack.source) == ("toy", "Toy set", "CC0", "Someone 2020")
    assert (report.n_clips, report.n_subjects, report.label_counts) == (2, 2, {"calm": 0, "joy": 1, "": 1})
    assert (report.frames, report.absent) == ({"audio": 2, "text": 1}, {"audio": 1, "text": 1})
    assert report.masked == {"audio": 1, "text": 0}
    assert pack.view("audio").mask.tolist() == [[1, 1], [0, 1]]
    for part in ("Toy set: 2 clips of 2 subjects", "1 values masked", "(undefined) 1", "CC0", "note: A toy."):
        assert part in str(report)


def test_a_pack_says_what_it_was_made_from(manifests, source, adapter, tmp_path):
    with_text(manifests)
    adapter.with_text = True
    import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests, louder=True)
    origin = json.loads((tmp_path / "p" / "pack.json").read_text())["made_from"]
    assert origin["options"] == {"louder": True}
    assert origin["files"] == {"numbers.bin": hashlib.sha256(CONTENT).hexdigest()}
    assert origin["manifest_sha256"] == hashlib.sha256((manifests / "toy.toml").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not toy: numbers.bin is missing; expected numbers.bin as its manifest states.*Ask for it"),
        (CONTENT + b"!", "is not toy: numbers.bin has 13 bytes and not 12"),
        (CONTENT.upper(), "is not toy: numbers.bin has sha256 [0-9a-f]{12}… and not [0-9a-f]{12}…"),
    ],
)
def test_a_folder_that_is_not_as_stated_is_refused(manifests, source, adapter, tmp_path, content, message):
    (source / "numbers.bin").unlink()
    if content is not None:
        (source / "numbers.bin").write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests)
    assert not (tmp_path / "p").exists()


def test_a_missing_source_is_refused(manifests, adapter, tmp_path):
    with pytest.raises(ManifestError, match="toy needs a source; expected its folder. Ask for it"):
        import_dataset("toy", out=tmp_path / "p", manifests=manifests)
    with pytest.raises(ManifestError, match="there is no folder .*nowhere; expected the files of toy"):
        import_dataset("toy", source=tmp_path / "nowhere", out=tmp_path / "p", manifests=manifests)


def test_a_place_that_must_not_be_replaced_is_refused_before_anything_is_read(manifests, source, adapter, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "notes.txt").touch()
    (source / "numbers.bin").unlink()  # the source would be refused as well
    with pytest.raises(PackError, match="p holds 'notes.txt', which is no part of a pack"):
        import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests, overwrite=True)


def test_an_unknown_option_is_refused_and_the_nearest_named(manifests, source, adapter, tmp_path):
    with pytest.raises(ManifestError, match="option 'loudr' is unknown; expected louder .*Did you mean 'louder'"):
        import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests, loudr=True)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({}, r"modalities are \[\]; expected \['audio'\]"),
        (toy_views(nodes=("band1", "band0")), r"audio.nodes is \('band1', 'band0'\); expected \('band0', 'band1'\)"),
        (toy_views(channels=("a", "b")), r"audio.channels is \('a', 'b'\); expected \('power',\)"),
        (toy_views(rate_hz=20.0), "audio.rate_hz is 20.0; expected 10.0"),
    ],
)
def test_views_that_are_not_what_the_manifest_states_are_refused(manifests, source, adapter, tmp_path, views, message):
    adapter.views = views
    with pytest.raises(ManifestError, match=message):
        import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests)


def test_what_was_left_out_and_noticed_stands_in_the_report(manifests, source, adapter, tmp_path):
    left_out = {f"clip{number:02d}": "it is empty" for number in range(12)}
    facts = {"clips": toy_clips().iloc[:1], "views": one_clip(), "left_out": left_out, "remarks": ["semicolons"]}
    adapter.read = lambda source, manifest: Reading(**facts)
    report = import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests)
    assert len(report.left_out) == 12
    for part in ("left out: clip00: it is empty", "left out: 2 more", "remark: semicolons"):
        assert part in str(report)
    assert "clip11" not in str(report)


def test_an_import_of_which_nothing_is_left_is_refused_with_the_first_reason(manifests, source, adapter, tmp_path):
    nothing = {"clips": toy_clips().iloc[:0], "views": {}, "left_out": {"a": "it is empty"}}
    adapter.read = lambda source, manifest: Reading(**nothing)
    with pytest.raises(ManifestError, match="no clip of toy is left; .* The first of 1 left out is a: it is empty"):
        import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests)
    assert not (tmp_path / "p").exists()


def test_an_adapter_may_be_given_a_folder_for_costly_work_beside_the_pack(manifests, source, adapter, tmp_path):
    given = []

    def read(source, manifest, *, work):
        given.append(work)
        return toy_clips().iloc[:1], one_clip()

    adapter.read = read
    import_dataset("toy", source=source, out=tmp_path / "p", manifests=manifests)
    assert given == [tmp_path / "p.media"]
    with pytest.raises(ManifestError, match="option 'work' is unknown; expected no options"):
        import_dataset("toy", source=source, out=tmp_path / "q", manifests=manifests, work=tmp_path)


# The embedded synthetic set

SMALL = {"n_domains": 2, "n_subjects_per_domain": 1, "clips_per_class": 2}


def test_the_synthetic_set_is_as_its_manifest_states(tmp_path):
    report = import_dataset("synemo", out=tmp_path / "p", seed=3, **SMALL)
    pack = open_pack(report.pack, verify="full")
    assert (len(pack), pack.labels) == (96, load_manifest("synemo").labels)
    assert set(pack.clips["label"]) <= {*pack.labels, ""}
    assert "is no recognition of emotions" not in pack.title and "synthetic" in pack.title


def test_the_same_settings_give_the_same_pack(tmp_path):
    digests = [
        open_pack(import_dataset("synemo", out=tmp_path / str(run), seed=seed, **SMALL).pack).digest
        for run, seed in enumerate((3, 3, 4))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_synthetic_set_takes_no_source_and_no_unknown_setting(tmp_path):
    with pytest.raises(ManifestError, match="expected none: synemo is generated"):
        import_dataset("synemo", source=tmp_path, out=tmp_path / "p")
    with pytest.raises(ManifestError, match="option 'sed' is unknown.*Did you mean 'seed'"):
        import_dataset("synemo", out=tmp_path / "p", sed=3)
    with pytest.raises(ConfigError, match="preset 'big' is unknown"):
        import_dataset("synemo", out=tmp_path / "p", preset="big")
