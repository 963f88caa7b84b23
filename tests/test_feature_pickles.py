"""Pickles of MMSA, MulT and of recognition in conversation, written here as their makers write them."""

import pickle

import numpy as np
import pytest

from stf2m_core.data.adapters import erc_pickle, mmsa_pickle
from stf2m_core.data.manifest import import_dataset, load_manifest
from stf2m_core.data.pack import open_pack
from stf2m_core.errors import ManifestError

MOSI = load_manifest("cmu_mosi")
LENGTHS = [3, 5]  # words of the two clips of each split


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Never zero, so that zeros are padding."""
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


def padded(lengths, n_steps, n_features, *, front: bool = False) -> np.ndarray:
    values = numbers(len(lengths), n_steps, n_features)
    step = np.arange(n_steps)[None]
    length = np.array(lengths)[:, None]
    inside = step >= n_steps - length if front else step < length
    return values * inside[..., None]


def mmsa_split(name: str, *, aligned: bool) -> dict:
    """The keys of MMSA's own files."""
    steps = {"audio": 6, "vision": 6} if aligned else {"audio": 20, "vision": 12}
    mask = (np.arange(6)[None] < np.array(LENGTHS)[:, None]).astype(np.int64)
    split = {
        "raw_text": np.array(["so it goes", "i am very very glad"]),
        "id": [f"video{name}$_$1", f"video{name}$_$2"],
        "text": numbers(2, 6, 4),
        "text_bert": np.stack([mask * 7, mask, mask * 0], axis=1).astype(np.float32),
        "audio": padded(LENGTHS if aligned else [11, 20], steps["audio"], 5),
        "vision": padded(LENGTHS if aligned else [6, 0], steps["vision"], 3),
        "annotations": ["Negative", "Positive"],
        "classification_labels": np.array([0.0, 2.0]),
        "regression_labels": np.array([-1.8, 0.0], np.float32),
    }
    if not aligned:
        split |= {"audio_lengths": [11, 20], "vision_lengths": [6, 0]}
    return split


def mult_split(name: str) -> dict:
    """The keys of MulT's files: zeros in front, labels of three axes, no lengths."""
    return {
        "text": padded(LENGTHS, 6, 4, front=True), "audio": padded(LENGTHS, 6, 5, front=True),
        "vision": padded(LENGTHS, 6, 3, front=True), "labels": np.array([[[2.4]], [[-0.2]]]),
        "id": np.array([[f"v{name}", "1.5", "3"], [f"v{name}", "3", "4.25"]], dtype=object),
    }  # fmt: skip


def dump(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path.parent


@pytest.mark.parametrize("protocol", [2, 5])
def test_an_unaligned_file_keeps_each_modality_its_own_length(tmp_path, protocol):
    content = {name: mmsa_split(name, aligned=False) for name in ("train", "valid", "test")}
    dump(tmp_path / "unaligned_50.pkl", content, protocol)
    report = import_dataset("cmu_mosi", source=tmp_path, out=tmp_path / "p")
    pack = open_pack(report.pack, verify="full")
    assert pack.view("text").lengths.tolist() == LENGTHS * 3
    assert pack.view("audio").lengths.tolist() == [11, 20] * 3
    assert pack.view("visual").lengths.tolist() == [6, 0] * 3  # the second clip has no face
    assert np.array_equal(pack.view("audio").values[:11, 0], content["train"]["audio"][0, :11])
    assert pack.view("audio").times[:11] == pytest.approx((np.arange(11) + 0.5) / 11 * 1.0)  # 3 words, 3 a second
    first = pack.clips.iloc[0]
    assert (first["clip_id"], first["subject"], first["label"], first["split"], first["valence"]) == (
        "videotrain$_$1", "videotrain", "negative", "train", pytest.approx(-1.8),
    )  # fmt: skip
    assert pack.clips["label"].tolist() == ["negative", "neutral"] * 3
    assert set(pack.clips["split"]) == {"train", "val", "test"}


def test_an_aligned_file_takes_every_length_from_the_words(tmp_path):
    dump(tmp_path / "aligned_50.pkl", {name: mmsa_split(name, aligned=True) for name in ("train", "valid", "test")})
    reading = mmsa_pickle.read(tmp_path, MOSI)
    assert {name: views.lengths.tolist() for name, views in reading.views.items()} == dict.fromkeys(
        ("text", "audio", "visual"), LENGTHS * 3
    )
    assert reading.remarks == []


def test_the_old_keys_are_read_and_zeros_in_front_are_padding(tmp_path):
    content = {name: mult_split(name) for name in ("train", "valid", "test")}
    reading = mmsa_pickle.read(dump(tmp_path / "mosi_data.pkl", content), MOSI)
    assert reading.views["visual"].lengths.tolist() == LENGTHS * 3
    assert np.array_equal(reading.views["text"].values[:3, 0], content["train"]["text"][0, 3:])
    assert reading.clips["clip_id"].tolist()[:2] == ["vtrain$_$1.5_3", "vtrain$_$3_4.25"]
    assert reading.clips["label"].tolist()[:2] == ["positive", "negative"]
    assert reading.remarks == ["mosi_data.pkl has no lengths: frames of zeros at either end are taken as padding"]


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("cmu_mosi", (16326, 1871, 4659), "16326, 1871, 4659 clips .*at most 2199 in all.*Import it as cmu_mosei"),
        ("cmu_mosi", (1284, 229, 687), "expected at most 2199"),
        ("cmu_mosei", (1284, 229, 686), "these are the splits of CMU-MOSI .*Import it as cmu_mosi\\."),
    ],
)
def test_a_pickle_of_the_other_set_under_the_same_name_is_told_by_its_splits(tmp_path, name, sizes, message):
    with pytest.raises(ManifestError, match=message):
        mmsa_pickle.check_set(name, sizes, tmp_path / "aligned_50.pkl")
    mmsa_pickle.check_set("mine", sizes, tmp_path / "aligned_50.pkl")
    mmsa_pickle.check_set({"cmu_mosi": "cmu_mosei", "cmu_mosei": "cmu_mosi"}[name], sizes, tmp_path / "aligned_50.pkl")


def test_a_whole_pickle_of_the_other_set_is_refused_before_its_frames_are_read(tmp_path):
    content = {name: mmsa_split(name, aligned=True) for name in ("train", "valid", "test")}
    clips = {"train": 2000, "valid": 200, "test": 200}
    for name, n in clips.items():
        repeats = -(-n // len(content[name]["id"]))
        content[name] = {key: np.concatenate([value] * repeats)[:n] for key, value in content[name].items()}
    dump(tmp_path / "aligned_50.pkl", content)
    with pytest.raises(ManifestError, match="aligned_50.pkl has 2000, 200, 200 clips in train, valid and test"):
        import_dataset("cmu_mosi", source=tmp_path, out=tmp_path / "p")
    assert not (tmp_path / "p").exists()


def spoil(content, **changes):
    return {**content, "train": {**content["train"], **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": np.zeros((2, 6), np.float32)}, r"audio has shape \(2, 6\) of float32; expected \(2, time"),
        ({"id": ["only one"]}, "id has 1 entries; expected 2"),
        ({"audio_lengths": [3, 60]}, "audio_lengths goes up to 60 for 2 clips; expected up to 20"),
        ({"regression_labels": np.array([0.0, np.nan])}, "regression_labels has 1 numbers for a clip, or one"),
    ],
)
def test_a_malformed_split_is_refused(tmp_path, changes, message):
    content = {name: mmsa_split(name, aligned=False) for name in ("train", "valid", "test")}
    dump(tmp_path / "unaligned_50.pkl", spoil(content, **changes))
    with pytest.raises(ManifestError, match=message):
        mmsa_pickle.read(tmp_path, MOSI)


def test_a_file_without_splits_or_a_choice_of_files_is_refused(tmp_path):
    dump(tmp_path / "a.pkl", {"train": {}})
    with pytest.raises(ManifestError, match="a.pkl has no splits; expected train, valid and test"):
        mmsa_pickle.read(tmp_path, MOSI)
    dump(tmp_path / "b.pkl", [])
    with pytest.raises(ManifestError, match=r"has 2 pickles \(a.pkl, b.pkl\); expected one.*Name it with file="):
        mmsa_pickle.read(tmp_path, MOSI)
    with pytest.raises(ManifestError, match="file '../a.pkl' is not there"):
        mmsa_pickle.read(tmp_path, MOSI, file="../a.pkl")


class Trap:
    """Runs a command when it is unpickled, as a hostile file would."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_by_name_and_the_code_does_not_run(tmp_path):
    content = {name: mmsa_split(name, aligned=True) for name in ("train", "valid", "test")}
    content["test"]["extra"] = Trap(tmp_path / "it ran")
    dump(tmp_path / "aligned_50.pkl", content)
    with pytest.raises(ManifestError, match=r"aligned_50.pkl asks for _?io.open, which was not run"):
        import_dataset("cmu_mosi", source=tmp_path, out=tmp_path / "p")
    assert not (tmp_path / "it ran").exists() and not (tmp_path / "p").exists()


# Recognition in conversation


def conversation(iemocap: bool) -> tuple:
    """Nine dictionaries: two dialogues of two and three utterances."""
    names = ["Ses01F_impro01", "Ses05M_script01_1"] if iemocap else [0, 7]
    sizes = dict(zip(names, (2, 3), strict=True))
    if iemocap:
        ids = {name: [f"{name}_{'FM'[i % 2]}{i:03d}" for i in range(size)] for name, size in sizes.items()}
        speakers = {name: ["FM"[i % 2] for i in range(size)] for name, size in sizes.items()}
    else:
        ids = {name: list(range(size)) for name, size in sizes.items()}
        speakers = {name: [np.eye(9)[i % 2] for i in range(size)] for name, size in sizes.items()}
    labels = {names[0]: [2, 0], names[1]: [5, 1, 3]}
    text, audio, visual = (
        {name: [numbers(width, seed=i) for i in range(size)] for name, size in sizes.items()} for width in (4, 3, 2)
    )
    said = {name: [f"line {i}" for i in range(size)] for name, size in sizes.items()}
    if iemocap:
        return ids, speakers, labels, text, audio, visual, said, {names[0]}, {names[1]}
    return ids, speakers, labels, text, audio, said, [names[0]], [names[1]], labels


def test_an_iemocap_tuple_becomes_clips(tmp_path):
    content = conversation(True)
    dump(tmp_path / "IEMOCAP_features.pkl", content, 2)
    pack = open_pack(import_dataset("iemocap_erc", source=tmp_path, out=tmp_path / "p").pack, verify="full")
    assert pack.clips["clip_id"][0] == "Ses01F_impro01_F000"
    assert pack.clips["subject"].tolist() == ["Ses01F", "Ses01M", "Ses05F", "Ses05M", "Ses05F"]
    assert pack.clips["label"].tolist() == ["neutral", "happiness", "frustration", "sadness", "anger"]
    assert pack.clips["split"].tolist() == ["train"] * 2 + ["test"] * 3
    assert np.array_equal(pack.view("visual").values[4, 0], content[5]["Ses05M_script01_1"][2])


def test_a_meld_tuple_becomes_clips(tmp_path):
    dump(tmp_path / "MELD_features_raw.pkl", conversation(False))
    pack = open_pack(import_dataset("meld_erc", source=tmp_path, out=tmp_path / "p").pack, verify="full")
    assert pack.modalities == ("text", "audio")
    assert pack.clips["clip_id"].tolist() == ["0_0", "0_1", "7_0", "7_1", "7_2"]
    assert pack.clips["subject"].tolist() == ["0/0", "0/1", "7/0", "7/1", "7/0"]
    assert pack.clips["label"].tolist() == ["fear", "neutral", "disgust", "surprise", "sadness"]
    assert pack.clips["text"][4] == "line 2"


def change(content, place, key, value):
    parts = list(content)
    parts[place] = {**parts[place], key: value}
    return tuple(parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (conversation(True)[:8], "holds 8; expected a tuple of 9"),
        ({"a": 1}, "holds dict; expected a tuple of 9"),
        (change(conversation(True), 4, "Ses01F_impro01", []), "'Ses01F_impro01' has 0 in entry 4; expected 2"),
        (change(conversation(True), 2, "Ses01F_impro01", [2, 9]), "labels go from 1 to 9; expected 0 to 5"),
        (change(conversation(True), 3, "Ses01F_impro01", [[1.0], [2.0]]), "text cannot be put together"),
    ],
)
def test_a_malformed_tuple_is_refused(tmp_path, content, message):
    dump(tmp_path / "IEMOCAP_features.pkl", content)
    with pytest.raises(ManifestError, match=message):
        erc_pickle.read(tmp_path, load_manifest("iemocap_erc"))
