"""A first look at one's own data: the example, the splits few people allow, and the table at the end."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stf2m_core import own_data
from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import RaggedViews, open_pack, write_pack
from stf2m_core.episodes import split_subjects
from stf2m_core.errors import EpisodeError, RunError


def pack_of(folder: Path, n_subjects: int, *, n_groups: int = 2, labels: tuple[str, ...] = ("calm", "joy", "rage")):
    """Every person shows every label once in each group; one value says which label it is."""
    rows = [(s, g, label) for s in range(n_subjects) for g in range(n_groups) for label in range(len(labels))]
    clips = pd.DataFrame({
        "clip_id": [f"{s}-{g}-{x}" for s, g, x in rows], "subject": [f"s{s:02d}" for s, _, _ in rows],
        "group": [f"s{s:02d}/{g}" for s, g, _ in rows], "domain": "lab", "duration_s": 1.0,
        "label": [labels[x] for _, _, x in rows], "split": "", "text": "",
    })  # fmt: skip
    noise = np.random.default_rng(0).normal(0, 0.1, len(rows))
    values = (np.array([x for _, _, x in rows]) + noise).astype(np.float32).reshape(-1, 1, 1)
    views = RaggedViews(values, np.arange(len(rows) + 1), ("n",), ("c",), 1.0)
    return open_pack(write_pack(folder, clips, {"audio": views}, labels, name="mine"))


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    report = import_dataset("features", source=own_data.write_example(folder / "data"), out=folder / "pack")
    return folder, report, open_pack(report.pack, verify="full")


def test_the_example_is_a_list_of_a_spreadsheet_and_is_imported_whole(example):
    folder, report, pack = example
    assert (folder / "data" / "clips.csv").read_bytes().startswith(b"\xef\xbb\xbfclip_id;subject;")
    assert (len(pack), pack.clips["subject"].nunique(), len(pack.labels)) == (384, 24, 4)
    assert report.remarks == ("clips.csv: cells are separated by semicolons",)
    assert pack.clips["duration_s"].between(2, 5).all()


def test_the_first_look_shows_the_list_or_else_the_files(example, tmp_path):
    look = own_data.first_look(example[0] / "data", n_lines=2).splitlines()
    assert look[0] == "clip_id;subject;group;domain;duration_s;label" and len(look) == 2
    for name in ("b.wav", "a.wav"):
        (tmp_path / name).write_bytes(b"")
    assert own_data.first_look(tmp_path, n_lines=1) == "2 files and folders: a.wav, …"


@pytest.mark.parametrize(
    ("n_subjects", "titles"),
    [
        (3, ["P 3-way 1-shot"]),
        (4, ["P 3-way 1-shot"]),
        (6, ["P 3-way 1-shot", "D 3-way 1-shot"]),
        (24, ["P 3-way 1-shot", "D 3-way 1-shot"]),  # three people of meta-validation have two clips of a label each
    ],
)
def test_settings_ask_only_for_episodes_that_every_part_can_give(tmp_path, n_subjects, titles):
    pack = pack_of(tmp_path / "p", n_subjects)
    config = own_data.settings_for(pack)
    assert [kind.title for kind in config.episodes] == titles
    parts = split_subjects(pack, config.split).subjects
    assert sum(map(len, parts.values())) == n_subjects == len(set().union(*parts.values()))


def test_data_that_give_no_episodes_are_refused_with_what_they_lack(tmp_path):
    pack = pack_of(tmp_path / "p", 3, n_groups=1)  # everything of a person is one group
    with pytest.raises(EpisodeError, match="3 subjects with 9 clips of 3 labels give no episodes in every part"):
        own_data.settings_for(pack)
    with pytest.raises(EpisodeError, match="6 clips give no episodes; expected two emotions in two groups"):
        own_data.prototypes_alone(pack_of(tmp_path / "q", 2, n_groups=1, labels=("calm", "joy", "rage")))


def test_one_person_is_looked_at_without_learning_anything(tmp_path):
    pack = pack_of(tmp_path / "p", 1)
    table = own_data.first_result(pack, tmp_path / "out")
    assert table.loc["P 3-way 1-shot"].tolist() == ["1.00 ± .00", ".33"]
    assert not (tmp_path / "out").exists()
    assert own_data.episode_table(pack).to_dict("records") == [
        {"part": "all clips", "people": 1, "clips": 6, "episodes": "P 3-way 1-shot"}
    ]


def test_each_part_is_told_with_its_people_and_episodes(tmp_path):
    table = own_data.episode_table(pack_of(tmp_path / "p", 4))
    assert table[["part", "people", "clips"]].to_numpy().tolist() == [
        ["meta-train", 2, 12], ["meta-val", 1, 6], ["meta-test", 1, 6],
    ]  # fmt: skip
    assert table["episodes"].tolist()[1] == "P 3-way 1-shot"


def test_the_controls_and_the_model_stand_in_one_table_with_chance(tmp_path):
    records = own_data.first_records(pack_of(tmp_path / "p", 4), tmp_path / "out", "test", progress_bar=False)
    table = own_data.first_table(records)
    assert table.index.tolist() == ["nearest-prototype", "ridge-prototype", "st-f2m", "chance"]
    assert table.loc["chance"].tolist() == [".33"]
    assert table.loc["nearest-prototype", "P 3-way 1-shot"].startswith("1.00")
    digests = {record.episode["digest"] for record in records}
    assert len(digests) == 1  # the very same episodes
    with pytest.raises(RunError, match="there are no records"):
        own_data.first_table([])


@pytest.mark.realdata
def test_twenty_real_clips_of_one_speaker_give_a_table(tmp_path):
    source = Path(os.environ["STF2M_DATA"]) / "pyfeat_news"
    pack = open_pack(import_dataset("pyfeat_news", source=source, out=tmp_path / "p").pack)
    table = own_data.prototypes_alone(pack)
    assert table.loc["P 2-way 1-shot"].to_dict() == {
        "visual": ".70 ± .03", "action_units": ".97 ± .01", "text": ".54 ± .04", "chance": ".50",
    }  # fmt: skip
    with pytest.raises(EpisodeError, match="1 subjects with 20 clips of 2 labels"):
        own_data.settings_for(pack)
