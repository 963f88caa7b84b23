"""EMO-DB, SAVEE and TESS: hums under names as published, in the folders they come in."""

import pytest
from media_files import hum, write

from stf2m_core.data.adapters.wav_folder import RULES, read
from stf2m_core.data.manifest import load_manifest
from stf2m_core.errors import ManifestError


@pytest.fixture
def tree(tmp_path):
    """`tree("wav/03a01Fa.wav", …)`: a folder with these files."""

    def make(*names: str):
        for name in names:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, sound=hum(0.2, 150.0), sound_codec="pcm_s16le")
        return tmp_path / "data"

    return make


def read_as(name: str, source, tmp_path, **options):
    return read(source, load_manifest(name), work=tmp_path / "work", n_workers=1, modalities=("audio",), **options)


def facts(reading) -> list[tuple[str, ...]]:
    return list(reading.clips[["clip_id", "subject", "group", "label"]].itertuples(index=False, name=None))


def test_emo_db(tree, tmp_path):
    reading = read_as("emo_db", tree("wav/03a01Fa.wav", "wav/16b10Wb.wav", "wav/readme.wav"), tmp_path)
    assert facts(reading) == [
        ("03a01Fa", "03", "03/a01", "happiness"),
        ("16b10Wb", "16", "16/b10", "anger"),
    ]
    assert reading.left_out == {"readme": "its name is none of emo_db"}
    assert set(reading.views) == {"audio"}
    assert reading.media["modalities"] == ("audio",)


def test_how_long_a_file_may_take_can_be_told(tree, tmp_path):
    reading = read_as("emo_db", tree("wav/03a01Fa.wav"), tmp_path, time_limit_s=1e-6)
    assert reading.left_out == {"03a01Fa": "it took longer than 1e-06 s and was given up"}


def test_savee_has_the_speaker_in_the_folder_or_in_the_name(tree, tmp_path):
    reading = read_as("savee", tree("DC/a01.wav", "DC/sa01.wav", "JE/a01.wav", "all/KL_su15.wav"), tmp_path)
    assert facts(reading) == [
        ("DC_a01", "DC", "DC/a01", "anger"),
        ("DC_sa01", "DC", "DC/sa01", "sadness"),
        ("JE_a01", "JE", "JE/a01", "anger"),
        ("KL_su15", "KL", "KL/su15", "surprise"),
    ]


def test_tess_with_its_misnamed_file_and_a_second_copy(tree, tmp_path):
    source = tree("OAF_neutral/OA_bite_neutral.wav", "YAF_ps/YAF_back_ps.wav", "copy/YAF_back_ps.wav")
    reading = read_as("tess", source, tmp_path)
    assert facts(reading) == [
        ("OA_bite_neutral", "OAF", "OAF/bite", "neutral"),
        ("YAF_back_ps", "YAF", "YAF/back", "pleasant surprise"),
    ]
    (reason,) = reading.left_out.values()
    assert "a second file called YAF_back_ps" in reason


@pytest.mark.parametrize("name", RULES)
def test_every_emotion_of_a_rule_is_a_label_and_every_label_has_one(name):
    assert sorted(RULES[name].emotions.values()) == sorted(load_manifest(name).labels)


def test_a_manifest_without_a_rule_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no rule for names of 'meld'; expected emo_db or savee or tess"):
        read(tmp_path, load_manifest("meld"), work=tmp_path)
