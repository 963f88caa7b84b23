"""Packs: what goes in comes out, what is malformed is refused in a sentence, a killed writer leaves no half pack."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from stf2m_core.data import folder as folder_module
from stf2m_core.data import pack as pack_module
from stf2m_core.data.pack import RaggedViews, mask_nonfinite, open_pack, verify, write_pack
from stf2m_core.errors import PackError

LABELS = ["calm", "joy"]
FILES = ["clips.csv", "pack.json", "views.safetensors"]


def some_clips(**changes):
    columns = {
        "clip_id": ["a", "b", "c"],
        "subject": ["01", "01", "NA"],
        "group": ["01/x", "01/y", "NA/x"],
        "domain": "film",
        "duration_s": [1.0, 0.1 + 0.2, 3.3033],
        "label": ["joy", "", "calm"],
        "split": "",
        "text": ['He said "no",\r\nthen\rleft.', None, "NA"],
    }
    return pd.DataFrame(columns | changes)


def some_views(**changes):
    audio = RaggedViews(
        values=np.arange(36, dtype=np.float32).reshape(6, 2, 3),
        offsets=np.array([0, 2, 2, 6]),
        nodes=("low", "high"),
        channels=("x", "y", "z"),
        rate_hz=50.0,
    )
    text = RaggedViews(
        values=np.arange(8, dtype=np.float16).reshape(4, 1, 2),
        offsets=np.array([0, 1, 3, 4]),
        nodes=("word",),
        channels=("x", "y"),
        times=np.array([0.5, 0.1, 0.1, 0.2], np.float32),
        mask=np.array([[1], [0], [1], [1]], np.uint8),
    )
    views = {"audio": audio, "text": text}
    return {name: replace(part, **changes.get(name, {})) for name, part in views.items()}


def write(path, clips=None, views=None, labels=LABELS, **options):
    clips = some_clips() if clips is None else clips
    return write_pack(path, clips, views or some_views(), labels, **{"name": "tiny", **options})


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "tiny")


def edit_head(path, **changes):
    head = json.loads((path / "pack.json").read_text()) | changes
    (path / "pack.json").write_text(json.dumps(head))


def rehash(path, name):
    head = json.loads((path / "pack.json").read_text())
    edit_head(path, files=head["files"] | {name: hashlib.sha256((path / name).read_bytes()).hexdigest()})


def rewrite_tensors(path, **changes):
    tensors = load_file(path / "views.safetensors") | {key.replace("__", "."): value for key, value in changes.items()}
    save_file({key: value for key, value in tensors.items() if value is not None}, path / "views.safetensors")
    rehash(path, "views.safetensors")


def rewrite_header(path, change):
    content = (path / "views.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (path / "views.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


# What goes in comes out


def test_tables_come_back_as_written(path):
    pack = open_pack(path, verify="full")
    wanted = some_clips(text=['He said "no",\r\nthen\rleft.', "", "NA"])
    assert pack.clips.to_dict("list") == wanted.to_dict("list")
    assert (len(pack), pack.name, pack.labels, pack.segments) == (3, "tiny", ("calm", "joy"), None)


@pytest.mark.parametrize("text", ["a\rb", "a\nb", " a ", "nan", "1e5", "#", "é\u2028", '"'])
def test_any_text_survives_the_csv_file(tmp_path, text):
    pack = open_pack(write(tmp_path / "p", some_clips(text=text, subject=text)))
    assert pack.clips["text"].tolist() == pack.clips["subject"].tolist() == [text] * 3


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_views_come_back_as_written(path, modality):
    got, put = open_pack(path).view(modality), some_views()[modality]
    for key in ("values", "offsets", "times", "mask"):
        if getattr(put, key) is None:
            assert getattr(got, key) is None
        else:
            np.testing.assert_array_equal(getattr(got, key), getattr(put, key), strict=True)
    assert (got.nodes, got.channels, got.rate_hz) == (put.nodes, put.channels, put.rate_hz)
    assert got.lengths.tolist() == np.diff(put.offsets).tolist()


def test_views_are_memory_mapped_and_read_only(path):
    for modality in ("audio", "text"):
        for key in ("values", "offsets", "times", "mask"):
            array = getattr(open_pack(path).view(modality), key)
            assert array is None or (isinstance(array, np.memmap) and not array.flags.writeable)


def test_strided_views_are_written_in_their_own_order(tmp_path):
    values = np.asfortranarray(some_views()["audio"].values)
    pack = open_pack(write(tmp_path / "p", views=some_views(audio={"values": values})))
    np.testing.assert_array_equal(pack.view("audio").values, values)


def test_a_modality_that_all_clips_lack_may_be_empty(tmp_path):
    empty = {"values": np.zeros((0, 2, 3), np.float32), "offsets": np.zeros(4, np.int64)}
    pack = open_pack(write(tmp_path / "p", views=some_views(audio=empty)), verify="full")
    assert pack.view("audio").values.shape == (0, 2, 3)


def test_a_graph_of_the_nodes_comes_back_and_changes_the_digest_of_its_pack_alone(tmp_path):
    plain = open_pack(write(tmp_path / "plain"))
    joined = open_pack(write(tmp_path / "joined", views=some_views(audio={"edges": (("high", "low"),)})))
    assert joined.edges("audio").tolist() == [[1, 0]]
    assert joined.edges("text") is None
    assert plain.edges("audio") is None
    assert "edges" not in json.loads((plain.path / "pack.json").read_text())["modalities"]["audio"]
    assert joined.digest != plain.digest
    with pytest.raises(PackError, match="modality 'face' is unknown; expected audio or text"):
        joined.edges("face")


BAD_EDGES = {
    "audio.edges names 'middle'; expected nodes of this modality": (("low", "middle"),),
    "edge low - low of audio joins a node to itself": (("low", "low"),),
    "edge high - low of audio is there twice; expected two nodes, each pair once": (("low", "high"), ("high", "low")),
    r"audio.edges holds \['low'\]; expected pairs of names": (("low",),),
    r"audio.edges holds array\(\[0, 1\]\); expected pairs of names": np.array([[0, 1]]),
    r"audio.edges is \[\]; expected a list of pairs of nodes, or no such key": (),
}


@pytest.mark.parametrize("message", BAD_EDGES)
def test_a_graph_that_joins_what_is_no_node_is_refused(tmp_path, message):
    with pytest.raises(PackError, match=message):
        write(tmp_path / "p", views=some_views(audio={"edges": BAD_EDGES[message]}))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_was_spoilt_in_the_file_is_refused_when_read(path):
    facts = json.loads((path / "pack.json").read_text())["modalities"]
    facts["audio"]["edges"] = [["low", "lower"]]
    edit_head(path, modalities=facts)
    with pytest.raises(PackError, match="audio.edges names 'lower'; .*pack.json"):
        open_pack(path)


def test_head_texts_and_origin_are_kept(tmp_path):
    path = write(tmp_path / "p", title="Ü", licence="CC0", source="us", made_by="me", made_from={"seed": 1})
    pack, head = open_pack(path), json.loads((path / "pack.json").read_text())
    assert (pack.title, pack.licence, pack.source) == ("Ü", "CC0", "us")
    assert (head["format"], head["version"], head["made_by"], head["made_from"]) == ("stf2m-pack", 1, "me", {"seed": 1})
    assert set(head["files"]) == {"clips.csv", "views.safetensors"}


def test_segments_come_back_as_written(tmp_path):
    segments = pd.DataFrame({"clip_id": ["a", "a"], "start_s": [0.0, 0.5], "end_s": [0.5, 1.0], "label": ["joy", ""]})
    pack = open_pack(write(tmp_path / "p", segments=segments), verify="full")
    assert pack.segments.to_dict("list") == segments.to_dict("list")


def test_own_columns_are_kept_as_text(tmp_path):
    pack = open_pack(write(tmp_path / "p", some_clips(x_take=[1, 2, 3])))
    assert pack.clips["x_take"].tolist() == ["1", "2", "3"]


def test_every_file_of_a_pack_has_the_same_permissions(path):
    assert len({(path / name).stat().st_mode for name in FILES}) == 1


def test_digest_tells_contents_apart_and_nothing_else(tmp_path):
    digest = open_pack(write(tmp_path / "p")).digest
    again = open_pack(write(tmp_path / "q", name="other", made_from="elsewhere")).digest
    values = some_views()["audio"].values + np.float32(1)
    changed = open_pack(write(tmp_path / "r", views=some_views(audio={"values": values}))).digest
    assert digest == again != changed
    assert len(digest) == 12


def test_column_order_does_not_change_the_digest(tmp_path):
    shuffled = some_clips()[list(some_clips().columns[::-1])]
    assert open_pack(write(tmp_path / "p")).digest == open_pack(write(tmp_path / "q", shuffled)).digest


# Labels


def test_label_ids_are_minus_one_where_the_label_is_undefined(path):
    label_ids = open_pack(path).label_ids
    assert (label_ids.tolist(), label_ids.dtype) == ([1, -1, 0], np.int64)


def test_soft_labels_without_votes_are_one_hot_or_even(path):
    soft = open_pack(path).soft_labels
    np.testing.assert_array_equal(soft, np.array([[0, 1], [0.5, 0.5], [1, 0]], np.float32), strict=True)


def test_soft_labels_are_shares_of_the_votes_where_there_are_any(tmp_path):  # I-7
    clips = some_clips(votes_joy=[3, 2, 0], votes_calm=[1, 2, 0])
    soft = open_pack(write(tmp_path / "p", clips)).soft_labels
    np.testing.assert_array_equal(soft, np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]], np.float32))


# Duplicates


def test_content_hashes_are_equal_for_equal_contents_only(tmp_path):
    audio = {"values": np.array([1, 1, 2], np.float32).reshape(3, 1, 1).repeat(2, 1).repeat(3, 2)}
    text = {"values": np.ones((3, 1, 2), np.float16), "times": np.zeros(3, np.float32), "mask": None}
    offsets = np.arange(4)
    views = some_views(audio=audio | {"offsets": offsets}, text=text | {"offsets": offsets})
    hashes = open_pack(write(tmp_path / "p", views=views)).content_hashes()
    assert hashes[0] == hashes[1] != hashes[2]


def test_content_hashes_tell_which_modality_is_missing(tmp_path):
    part = RaggedViews(np.ones((1, 1, 1), np.float32), np.array([0, 1, 1]), ("n",), ("c",), 1.0)
    views = {"audio": part, "visual": replace(part, offsets=np.array([0, 0, 1]))}
    hashes = open_pack(write(tmp_path / "p", some_clips().iloc[:2], views)).content_hashes()
    assert hashes[0] != hashes[1]


# Masking


def test_mask_nonfinite_masks_the_node_and_counts_the_values():
    views = some_views()["text"]
    values = views.values.copy()
    values[0, 0, 1], values[3, 0] = np.nan, np.inf
    masked, count = mask_nonfinite(replace(views, values=values))
    assert count == 3
    assert masked.mask.tolist() == [[0], [0], [1], [0]]
    assert masked.values[0].tolist() == masked.values[3].tolist() == [[0.0, 0.0]]
    assert np.isnan(values[0, 0, 1]), "the caller's array is not to be changed"


def test_mask_nonfinite_leaves_finite_views_alone():
    views = some_views()["audio"]
    masked, count = mask_nonfinite(views)
    assert masked is views
    assert count == 0


# Views refused by write_pack

BAD_VIEWS = {
    r"audio.offsets has 3 entries; expected 4 for 3 clips": ("audio", {"offsets": np.array([0, 2, 6])}),
    r"audio.offsets starts at 1; expected 0": ("audio", {"offsets": np.array([1, 2, 2, 6])}),
    r"audio.offsets decreases from 4 to 3 at clip 1": ("audio", {"offsets": np.array([0, 4, 3, 6])}),
    r"audio.offsets ends at 5; expected 6": ("audio", {"offsets": np.array([0, 2, 2, 5])}),
    r"audio.offsets is int32; expected int64": ("audio", {"offsets": np.array([0, 2, 2, 6], np.int32)}),
    r"audio.values is float64; expected float16 or float32": ("audio", {"values": np.zeros((6, 2, 3))}),
    r"audio.values has shape \(6, 6\)": ("audio", {"values": np.zeros((6, 6), np.float32)}),
    r"audio.values has shape \(6, 2, 2\); expected \(6, 2, 3\)": ("audio", {"values": np.zeros((6, 2, 2), "f4")}),
    r"audio.nodes (are|is) \['low', 'low'\]": ("audio", {"nodes": ("low", "low")}),
    r"audio.channels (are|is) \[\]": ("audio", {"channels": ()}),
    r"audio.rate_hz is 0.0; expected frames per second above 0": ("audio", {"rate_hz": 0.0}),
    r"audio has neither rate_hz nor times": ("audio", {"rate_hz": None}),
    r"text.times decreases from 0.5 to 0.25 within clip 1": (
        "text",
        {"times": np.array([0, 0.5, 0.25, 0.75], np.float32)},
    ),
    r"text.times is nan in clip 1": ("text", {"times": np.array([0, 0.5, np.nan, 0], np.float32)}),
    r"text.times is -1.0 in clip 0; expected seconds since": ("text", {"times": np.array([-1, 0, 0, 0], np.float32)}),
    r"text.times has shape \(3,\); expected \(4,\)": ("text", {"times": np.zeros(3, np.float32)}),
    r"text.mask holds 2; expected 0 or 1": ("text", {"mask": np.full((4, 1), 2, np.uint8)}),
    r"text.mask is bool; expected uint8": ("text", {"mask": np.ones((4, 1), bool)}),
}


@pytest.mark.parametrize("message", BAD_VIEWS)
def test_views_that_do_not_fit_together_are_refused(tmp_path, message):
    modality, change = BAD_VIEWS[message]
    with pytest.raises(PackError, match=message):
        write(tmp_path / "p", views=some_views(**{modality: change}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(tmp_path, value):
    values = some_views()["audio"].values.copy()
    values[3, 1, 2] = value
    where = r"at frame 3, node 'high', channel 'z' of clip 2; expected finite values"
    with pytest.raises(PackError, match=f"audio.values is {value} {where}"):
        write(tmp_path / "p", views=some_views(audio={"values": values}))


def test_bad_values_are_found_beyond_the_first_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("stf2m_core.data.ragged._CHUNK", 2)
    values = some_views()["audio"].values.copy()
    values[5, 0, 0] = np.nan
    with pytest.raises(PackError, match="at frame 5, node 'low', channel 'x'"):
        write(tmp_path / "p", views=some_views(audio={"values": values}))


def test_times_may_fall_between_clips_but_not_at_a_clip_after_an_empty_one(tmp_path):
    times = np.array([0.5, 0.1, 0.1, 0.05], np.float32)
    empty_between = some_views(text={"times": times, "offsets": np.array([0, 1, 1, 4])})
    with pytest.raises(PackError, match="text.times decreases from 0.1.* to 0.05.* within clip 2"):
        write(tmp_path / "p", views=empty_between)


def test_a_clip_without_any_modality_is_refused(tmp_path):
    with pytest.raises(PackError, match=r"clip 'b' \(row 1\) has no frame in any modality"):
        write(tmp_path / "p", views={"audio": some_views()["audio"]})


def test_a_pack_without_modalities_is_refused(tmp_path):
    with pytest.raises(PackError, match="modalities are {}; expected at least one"):
        write_pack(tmp_path / "p", some_clips(), {}, LABELS, name="tiny")


@pytest.mark.parametrize("modality", ["a.b", "", "../a"])
def test_a_modality_name_that_would_confuse_keys_is_refused(tmp_path, modality):
    with pytest.raises(PackError, match="is named so; expected letters"):
        write(tmp_path / "p", views={modality: some_views()["text"]})


def test_something_else_than_views_is_refused(tmp_path):
    with pytest.raises(PackError, match="modality 'audio' is a ndarray; expected RaggedViews"):
        write(tmp_path / "p", views={"audio": np.zeros(3)})


# Tables refused by write_pack

BAD_CLIPS = {
    r"clip_id is 'a' at row 1 \(clip 'a'\); expected a different one for each clip": {"clip_id": ["a", "a", "c"]},
    r"label is 'jo' at row 0 \(clip 'a'\); expected one of calm, joy": {"label": ["jo", "", "calm"]},
    r"duration_s is 0 at row 1 \(clip 'b'\); expected seconds above 0": {"duration_s": [1, 0, 1]},
    r"duration_s is -1 at row 2": {"duration_s": [1, 1, -1]},
    r"duration_s is nan at row 0": {"duration_s": [None, 1, 1]},
    r"duration_s is inf at row 0": {"duration_s": [np.inf, 1, 1]},
    r"duration_s holds a cell that is no number: .*'long'": {"duration_s": ["1", "long", "1"]},
    r"subject is '' at row 1 \(clip 'b'\); expected a name": {"subject": ["01", None, "02"]},
    r"group is '' at row 0": {"group": ["", "x", "y"]},
    r"column 'votes_joi' counts votes for an unknown label; expected calm, joy": {"votes_joi": 1},
    r"column 'votes_calm' is missing; expected votes for every label or for none": {"votes_joy": 1},
    r"votes_joy is -1 at row 2": {"votes_calm": 1, "votes_joy": [1, 1, -1]},
    r"votes_calm is nan at row 0": {"votes_calm": [None, 1, 1], "votes_joy": 1},
    r"valence is inf at row 0": {"valence": [np.inf, 1, 1]},
    r"column 'lable' is unknown.*Did you mean 'label'": {"lable": "joy"},
    r"column 'zzz' is unknown.*Prefix columns of your own with x_": {"zzz": 1},
    r"a text cannot be written as UTF-8": {"text": ["\ud800", "", ""]},
}


@pytest.mark.parametrize("message", BAD_CLIPS)
def test_malformed_clips_are_refused(tmp_path, message):
    with pytest.raises(PackError, match=message):
        write(tmp_path / "p", some_clips(**BAD_CLIPS[message]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("column", list(some_clips().columns))
def test_a_missing_column_is_refused(tmp_path, column):
    with pytest.raises(PackError, match=f"column '{column}' is missing; expected clip_id, subject"):
        write(tmp_path / "p", some_clips().drop(columns=column))


def test_no_clips_are_refused(tmp_path):
    with pytest.raises(PackError, match="there are no clips"):
        write(tmp_path / "p", some_clips().iloc[:0])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("clip_id", "z", "clip_id is 'z' at row 0 .*expected a clip of clips.csv"),
        ("start_s", -0.1, "start_s is -0.1 at row 0 .*expected seconds within the clip"),
        ("start_s", 1.5, "start_s is 1.5 at row 0"),
        ("end_s", 0.0, "end_s is 0 at row 0 .*expected after start_s"),
        ("end_s", 1.1, "end_s is 1.1 at row 0 .*expected after start_s, within the clip"),
        ("label", "zzz", "label is 'zzz' at row 0"),
    ],
)
def test_malformed_segments_are_refused(tmp_path, column, value, message):
    segments = pd.DataFrame({"clip_id": ["a"], "start_s": [0.0], "end_s": [1.0], "label": ["joy"]} | {column: [value]})
    with pytest.raises(PackError, match=message):
        write(tmp_path / "p", segments=segments)


@pytest.mark.parametrize("labels", [[], ["joy", "joy"], ["joy", ""], ["joy", 3]])
def test_malformed_labels_are_refused(tmp_path, labels):
    with pytest.raises(PackError, match="labels are .*; expected different, non-empty names"):
        write(tmp_path / "p", labels=labels)


def test_a_pack_needs_a_name(tmp_path):
    with pytest.raises(PackError, match="name is ''; expected a text"):
        write(tmp_path / "p", name="")


def test_an_origin_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(PackError, match="pack.json cannot hold what it should: .*PosixPath"):
        write(tmp_path / "p", made_from=Path("somewhere"))


# Packs refused by open_pack


def test_a_missing_pack_is_refused(tmp_path):
    with pytest.raises(PackError, match="there is no pack at .*nowhere"):
        open_pack(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(path, name):
    (path / name).unlink()
    with pytest.raises(PackError, match=f"{name} is missing"):
        open_pack(path)


def test_an_unknown_modality_is_refused(path):
    with pytest.raises(PackError, match="modality 'video' is unknown; expected audio or text"):
        open_pack(path).view("video")


def test_an_unknown_level_of_verification_is_refused(path):
    with pytest.raises(PackError, match="verify is 'none'; expected 'full' or 'fast'"):
        verify(path, level="none")


BAD_HEADS = {
    r"format is 'zip'; expected 'stf2m-pack'": {"format": "zip"},
    r"version is 2; expected at most 1 .*Update the kit": {"version": 2},
    r"version is '1'; expected 1": {"version": "1"},
    r"version is True; expected 1": {"version": True},
    r"labels are \['calm', 'calm'\]": {"labels": ["calm", "calm"]},
    r"label is 'joy' at row 0": {"labels": ["calm", "fear"]},
    r"modalities are \[\]": {"modalities": []},
    r"modality 'audio' is \{\}; expected nodes, channels and rate_hz": {"modalities": {"audio": {}}},
    r"files is None": {"files": None},
    r"files lacks clips.csv": {"files": {"views.safetensors": "0"}},
    r"file 'notes.txt' is missing|notes.txt is missing": {"files": {"notes.txt": "0"}},
    r"file name '../clips.csv' leads out of the pack": {"files": {"../clips.csv": "0"}},
    r"file name '/etc/passwd' leads out of the pack": {"files": {"/etc/passwd": "0"}},
    r"file name 'C:\\\\x' leads out of the pack": {"files": {"C:\\x": "0"}},
    r"title is 3; expected a text": {"title": 3},
    r"pack.json cannot hold what it should": {"made_from": float("nan")},
}


@pytest.mark.parametrize("message", BAD_HEADS)
def test_a_malformed_head_is_refused(path, message):
    edit_head(path, **BAD_HEADS[message])
    with pytest.raises(PackError, match=message):
        open_pack(path)


def test_a_head_that_is_not_json_is_refused(path):
    (path / "pack.json").write_text('{"format": "stf2m-pack"')
    with pytest.raises(PackError, match="pack.json is not JSON"):
        open_pack(path)


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_pack_is_refused(path, tmp_path, name):
    shutil.move(path / name, tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackError, match=f"file name '{name}' leads out of the pack"):
        open_pack(path)


def test_a_changed_table_is_refused_even_by_the_fast_check(path):
    content = (path / "clips.csv").read_text()
    (path / "clips.csv").write_text(content.replace("film", "book"))
    stated = json.loads((path / "pack.json").read_text())["files"]["clips.csv"][:12]
    with pytest.raises(PackError, match=f"clips.csv has sha256 [0-9a-f]{{12}}…; expected {stated}… by pack.json"):
        open_pack(path, verify="fast")


def test_a_changed_value_is_refused_by_the_full_check(path):
    content = bytearray((path / "views.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "views.safetensors").write_bytes(content)
    with pytest.raises(PackError, match="views.safetensors has sha256"):
        verify(path)


def test_a_value_that_is_not_finite_is_refused_by_the_full_check(path):
    rewrite_tensors(path, audio__values=np.full((6, 2, 3), np.nan, np.float32))
    with pytest.raises(PackError, match="audio.values is nan at frame 0"):
        verify(path, level="full")


@pytest.mark.parametrize("keep", [0, 7, 8, 60, -1])
def test_a_truncated_view_file_is_refused_by_the_fast_check(path, keep):
    content = (path / "views.safetensors").read_bytes()
    (path / "views.safetensors").write_bytes(content[:keep])
    with pytest.raises(PackError, match="views.safetensors is truncated"):
        open_pack(path, verify="fast")


def test_a_view_file_with_a_tail_is_refused(path):
    with (path / "views.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(PackError, match="views.safetensors is too long: it has .* bytes; expected .* by its header"):
        open_pack(path)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[]", b"[" * 200_000])
def test_a_header_that_is_no_mapping_is_refused(path, text):
    (path / "views.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(PackError, match="the header of views.safetensors is"):
        open_pack(path)


BAD_ENTRIES = {
    r"audio.values has dtype 'F64'; expected F16 or F32 or I64 or U8": {"dtype": "F64"},
    r"audio.values has dtype \['F32'\]": {"dtype": ["F32"]},
    r"audio.values has .* bytes; expected .* for shape": {"shape": [7, 2, 3]},
    r"audio.values has shape \[-6, -2, 3\]; expected integers": {"shape": [-6, -2, 3]},
    r"audio.values has shape .*; expected integers": {"shape": [1 << 62, 1 << 62]},
    r"audio.values has data_offsets \[0\]": {"data_offsets": [0]},
    r"audio.values has data_offsets \[0.5, 1\]": {"data_offsets": [0.5, 1]},
    r"audio.values is described by": {"extra": 1},
    r"starts at byte \d+ of the data; expected 64": {"data_offsets": [1_000_000, 1_000_144]},
}


@pytest.mark.parametrize("message", BAD_ENTRIES)
def test_a_header_entry_out_of_bounds_is_refused(path, message):
    rewrite_header(path, lambda header: header["audio.values"].update(BAD_ENTRIES[message]))
    with pytest.raises(PackError, match=message):
        open_pack(path)


def test_a_header_entry_that_is_no_mapping_is_refused(path):
    rewrite_header(path, lambda header: header.update({"audio.values": 3}))
    with pytest.raises(PackError, match="audio.values is described by 3"):
        open_pack(path)


def test_views_of_an_unknown_modality_are_refused(path):
    rewrite_tensors(path, smell__values=np.zeros(3, np.float32))
    with pytest.raises(PackError, match="smell.values is unknown; expected keys of audio, text"):
        open_pack(path)


@pytest.mark.parametrize("key", ["audio.values", "audio.offsets"])
def test_a_modality_without_its_arrays_is_refused(path, key):
    rewrite_tensors(path, **{key.replace(".", "__"): None})
    with pytest.raises(PackError, match=f"{key} is missing"):
        open_pack(path)


def test_offsets_are_checked_by_the_fast_check_too(path):
    rewrite_tensors(path, audio__offsets=np.array([0, 9, 2, 6]))
    with pytest.raises(PackError, match="audio.offsets decreases from 9 to 2 at clip 1"):
        open_pack(path, verify="fast")


def test_a_table_with_fewer_clips_than_the_views_is_refused(path):
    lines = (path / "clips.csv").read_bytes().rstrip(b"\n").split(b"\n")
    (path / "clips.csv").write_bytes(b"\n".join(lines[:-1]) + b"\n")
    rehash(path, "clips.csv")
    with pytest.raises(PackError, match="audio.offsets has 4 entries; expected 3 for 2 clips"):
        open_pack(path)


@pytest.mark.parametrize("content", [b"", b'"clip_id"\n"\xff"\n', b'"a","b"\n"1\n'])
def test_a_table_that_is_no_csv_is_refused(path, content):
    (path / "clips.csv").write_bytes(content)
    rehash(path, "clips.csv")
    with pytest.raises(PackError, match="the table cannot be read"):
        open_pack(path)


def test_a_pack_that_may_not_be_read_is_refused(path, monkeypatch):
    def deny(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(PackError, match="the pack cannot be read: Permission denied"):
        open_pack(path)


# Whole or absent


def test_a_pack_that_is_there_is_not_replaced_unasked(path):
    digest = open_pack(path).digest
    with pytest.raises(PackError, match="is already there; expected a free path.*overwrite=True"):
        write(path, some_clips(domain="other"))
    assert open_pack(path).digest == digest


def test_a_pack_is_replaced_when_asked_and_nothing_is_left_beside_it(path):
    write(path, some_clips(domain="other"), overwrite=True)
    assert open_pack(path, verify="full").clips["domain"].tolist() == ["other"] * 3
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny"]


def test_an_open_pack_stays_readable_while_it_is_replaced(path):
    pack = open_pack(path)
    write(path, views=some_views(audio={"values": np.zeros((6, 2, 3), np.float32)}), overwrite=True)
    np.testing.assert_array_equal(pack.view("audio").values, some_views()["audio"].values)


def test_a_folder_with_other_files_is_never_replaced(path):
    (path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(PackError, match="holds 'thesis.txt', which is no part of a pack"):
        write(path, overwrite=True)
    assert (path / "thesis.txt").read_text() == "ten years of work"


def test_a_file_is_never_replaced(tmp_path):
    (tmp_path / "p").write_text("mine")
    with pytest.raises(PackError, match="p is a file; expected a folder or nothing there"):
        write(tmp_path / "p", overwrite=True)


def test_the_folder_behind_a_link_is_replaced_and_the_link_stays(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    write(tmp_path / "link", some_clips(domain="other"), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert open_pack(path).clips["domain"].tolist() == ["other"] * 3


def test_a_target_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PackError, match="file/p cannot be written: (Not a directory|File exists)"):
        write(tmp_path / "file" / "p")


def fail_table(monkeypatch, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", fail)


def fail_views(monkeypatch, code):
    def fail(*_):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")

    monkeypatch.setattr(pack_module, "save_file", fail)


@pytest.mark.parametrize("fail", [fail_table, fail_views])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full, so .*tiny was not written"),
        (errno.EACCES, "cannot be written: Permission denied"),
    ],
)
def test_a_failed_write_leaves_the_old_pack_and_nothing_beside_it(path, monkeypatch, fail, code, message):
    digest = open_pack(path).digest
    with monkeypatch.context() as patch:
        fail(patch, code)
        with pytest.raises(PackError, match=message):
            write(path, some_clips(domain="other"), overwrite=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny"]
    assert open_pack(path, verify="full").digest == digest


def test_the_old_pack_comes_back_if_the_new_one_cannot_be_moved(path, monkeypatch):
    digest, rename = open_pack(path).digest, os.rename

    def refuse_new(source, target):
        if ".new-" in str(source) and Path(target).name == "tiny":
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module.os, "rename", refuse_new)
        with pytest.raises(PackError, match="cannot be written: Permission denied"):
            write(path, some_clips(domain="other"), overwrite=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny"]
    assert open_pack(path, verify="full").digest == digest


def test_folders_of_dead_writers_are_removed_and_those_of_living_ones_kept(tmp_path):
    dead, living = tmp_path / f".tiny.new-{'0' * 12}", tmp_path / f".tiny.new-{'1' * 12}"
    stranger = tmp_path / ".tiny.new-mine"
    for folder in (dead, living, stranger):
        folder.mkdir()
    handle = folder_module._lock(living, exclusive=True, wait=False)
    try:
        write(tmp_path / "tiny")
    finally:
        folder_module._unlock(handle)
    assert (dead.exists(), living.exists(), stranger.exists()) == (False, True, True)


def test_two_writers_at_once_leave_one_whole_pack(tmp_path):
    def write_some(domain):
        for _ in range(5):
            write(tmp_path / "tiny", some_clips(domain=domain), overwrite=True)

    threads = [threading.Thread(target=write_some, args=(domain,)) for domain in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_pack(tmp_path / "tiny", verify="full").clips["domain"].iloc[0] in ("one", "two")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


def test_a_pack_that_cannot_be_moved_back_is_refused_with_what_to_do(path, monkeypatch):
    path.rename(path.parent / ".tiny.old")

    def deny(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(folder_module.os, "rename", deny)
    with pytest.raises(PackError, match="could not be moved back: Permission denied.*Rename .tiny.old to tiny by hand"):
        open_pack(path)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np, pandas as pd
from stf2m_core.data.pack import RaggedViews, open_pack, write_pack

parent, when = Path(sys.argv[1]), sys.argv[2]
clips = pd.DataFrame({"clip_id": ["a"], "subject": "s", "group": "g", "domain": "d", "duration_s": [1.0], "label": "l",
                      "split": "", "text": ""})

def write(path, number):
    views = {"audio": RaggedViews(np.full((1, 1, 1), number, np.float32), np.array([0, 1]), ("n",), ("c",), 1.0)}
    write_pack(path, clips, views, ["l"], name="p", overwrite=True)

def number(path):
    return float(open_pack(path, verify="full").view("audio").values[0, 0, 0])

def die_at(step):
    calls = {"left": step}
    def counted(function):
        def call(*args, **kwargs):
            calls["left"] -= 1
            if when == "before" and calls["left"] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = function(*args, **kwargs)
            if when == "after" and calls["left"] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer
        return call
    for name in ("mkdir", "rename", "fsync", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))

step, seen = 0, []
while True:
    path = parent / f"p{step}"
    write(path, 1)
    child = os.fork()
    if child == 0:
        die_at(step)
        write(path, 2)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    old = parent / f".p{step}.old"
    aside = number(old) if old.exists() else 1.0
    seen.append(number(path))
    write(path, 3)
    left = sorted(entry.name for entry in parent.iterdir() if f"p{step}" in entry.name)
    print(step, os.WIFSIGNALED(status), seen[-1], aside, number(path), left)
    if not os.WIFSIGNALED(status):
        break
    step += 1
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new_pack(tmp_path, when):
    environment = os.environ | {"PYTHONPATH": str(Path(pack_module.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path), when]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" ", 5) for line in done.stdout.splitlines()]
    assert len(rows) > 10, "the writer was killed at too few moments to mean anything"
    assert [row[1] for row in rows] == ["True"] * (len(rows) - 1) + ["False"]
    seen = [float(row[2]) for row in rows]
    assert seen == sorted(seen), "the old pack up to some moment, the new one from then on"
    assert set(seen) == {1.0, 2.0}
    assert {row[3] for row in rows} == {"1.0"}, "what lies aside as the old pack is whole, never half deleted"
    assert {row[4] for row in rows} == {"3.0"}, "the next writer succeeds"
    assert [row[5] for row in rows] == [f"['p{step}']" for step in range(len(rows))]
