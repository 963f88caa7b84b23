"""Croissant: every manifest of the kit, read back and, where the format's own library is there, checked by it."""

import json

import pytest

from stf2m_core.data.croissant import croissant, write_croissant
from stf2m_core.data.manifest import load_manifest, manifest_folder
from stf2m_core.errors import ManifestError

NAMES = sorted(path.stem for path in manifest_folder().glob("*.toml"))


def test_what_the_manifest_states_is_written(tmp_path):
    manifest = load_manifest("mosi_features")
    facts = json.loads(write_croissant(manifest, tmp_path / "croissant.json").read_text())
    assert (facts["name"], facts["license"], facts["citeAs"]) == (manifest.name, manifest.licence, manifest.citation)
    assert [record["labels/name"] for record in facts["recordSet"][0]["data"]] == ["negative", "positive"]
    first = facts["distribution"][0]
    assert (first["contentUrl"], first["sha256"], first["contentSize"]) == (
        "features.npz", manifest.files[0].sha256, f"{manifest.files[0].size} B",
    )  # fmt: skip
    for note in (*manifest.notes, manifest.access):
        assert note in facts["description"]


def test_gated_sets_and_addresses_are_told():
    assert croissant(load_manifest("iemocap"))["isAccessibleForFree"] is False
    assert croissant(load_manifest("tess"))["url"] == "https://doi.org/10.5683/SP2/E8H2MF"
    assert "url" not in croissant(load_manifest("synemo"))


def test_a_file_without_a_hash_has_no_entry():
    manifest = load_manifest("emo_db")
    assert manifest.download[0].hash is None
    assert croissant(manifest)["distribution"] == []


def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ManifestError, match="taken cannot be written: Is a directory"):
        write_croissant(load_manifest("synemo"), tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the library's own dependencies
@pytest.mark.parametrize("name", NAMES)
def test_the_library_of_the_format_accepts_every_manifest(name, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    manifest = load_manifest(name)
    dataset = mlcroissant.Dataset(str(write_croissant(manifest, tmp_path / "croissant.json")))
    assert dataset.metadata.name == name
    if manifest.labels:
        records = [record["labels/name"] for record in dataset.records("labels")]
        assert [r.decode() if isinstance(r, bytes) else r for r in records] == list(manifest.labels)
