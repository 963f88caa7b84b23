"""CMU-MOSI utterance features: a small pair of files of the same layout, and the real ones."""

import os
from pathlib import Path

import numpy as np
import pytest

from stf2m_core.data.adapters.mosi_features import read
from stf2m_core.data.manifest import import_dataset, load_manifest
from stf2m_core.data.pack import open_pack
from stf2m_core.errors import ManifestError

MANIFEST = load_manifest("mosi_features")
INDEX = """row,utterance_id,video_id,segment,text,label,label_name,split
0,v_1,v,1,GOOD FILM,1,positive,train
1,v_2,v,2,"BAD, BAD",0,negative,train
2,w_1,w,1,SO SO,0,negative,test
"""


def archive(folder: Path, **changes) -> Path:
    arrays = {
        "text": np.ones((3, 100), np.float32), "audio": np.ones((3, 73), np.float32),
        "video": np.arange(300, dtype=np.float32).reshape(3, 100), "label": np.array([1, 0, 0], np.int8),
        "label_names": np.array(["negative", "positive"]), "video_ids": np.array(["v", "w"]),
        "video_offsets": np.array([0, 2, 3]), "segment": np.array([1, 2, 1], np.int16),
    }  # fmt: skip
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(folder / "features.npz", **arrays)
    (folder / "index.csv").write_text(INDEX)
    return folder


def test_an_utterance_is_a_clip_of_one_frame(tmp_path):
    clips, views = read(archive(tmp_path), MANIFEST)
    assert clips["subject"].tolist() == ["v", "v", "w"]
    assert clips["label"].tolist() == ["positive", "negative", "negative"]
    assert views["visual"].values[1, 0].tolist() == list(range(100, 200))
    assert {name: part.values.shape for name, part in views.items()} == {
        "text": (3, 1, 100), "audio": (3, 1, 73), "visual": (3, 1, 100),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": None}, "video is not a file in the archive; expected text, audio, video"),
        ({"segment": np.array([1, 2, 2], np.int16)}, "segment of row 2 is '1' in index.csv; expected"),
        ({"label": np.array([1, 1, 0], np.int8)}, "label_name of row 1 is 'negative' in index.csv"),
        ({"label_names": np.array(["no", "yes"])}, r"label_names are \('no', 'yes'\)"),
        ({"audio": np.ones((2, 73), np.float32)}, "audio has 2 rows; expected 3, as index.csv"),
    ],
)
def test_two_files_that_do_not_belong_together_are_refused(tmp_path, changes, message):
    with pytest.raises(ManifestError, match=message):
        read(archive(tmp_path, **changes), MANIFEST)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (archive(tmp_path) / "features.npz").write_bytes(b"PK no")
    with pytest.raises(ManifestError, match="features.npz cannot be read"):
        read(tmp_path, MANIFEST)


@pytest.mark.realdata
def test_the_real_features_become_a_pack(tmp_path):
    source = Path(os.environ["STF2M_DATA"]) / "mosi_trimodal"
    pack = open_pack(import_dataset("mosi_features", source=source, out=tmp_path / "p").pack, verify="full")
    with np.load(source / "features.npz", allow_pickle=False) as archive_:
        assert np.array_equal(pack.view("visual").values[:, 0], archive_["video"])
        assert np.array_equal(pack.label_ids, archive_["label"])
    assert (len(pack), pack.clips["subject"].nunique()) == (1447, 62)
    assert int((pack.view("visual").values == 0).all(axis=(0, 1)).sum()) == 32  # as its manifest says
