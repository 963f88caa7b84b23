"""From one clip to an answer: real recordings written by the tests, a small run on features of such recordings."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from media_files import RATE, hum, write

from stf2m_core import RaggedViews, calibration, experiment, figures, open_pack, predict, write_pack
from stf2m_core.__main__ import main
from stf2m_core.calibration import FILE, fit_temperature, softened
from stf2m_core.clip_features import media_settings, recorded, resident, whole, windows
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.media import MediaSettings, read_clip
from stf2m_core.data.media.glance import glance
from stf2m_core.data.media.sample import drawn_face
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.errors import ConfigError, EpisodeError, ManifestError, MediaError, RunError
from stf2m_core.predicting import PredictionSettings, adapt, read, why_not
from stf2m_core.support_list import from_episode

for _name in ("av", "cv2", "librosa"):
    pytest.importorskip(_name, reason="needs the extra `media`")

LABELS = ("calm", "excited")
SETTINGS = PredictionSettings(window_s=0.8, hop_s=0.2)
SMALL = {
    "episodes": [{"regime": "P", "n_way": 2, "n_shot": 1, "n_query": 2}], "split__n_folds": 4,
    "split__n_val_subjects": 3, "train__device": "cpu", "encoder__level_path": False,
}  # fmt: skip


def frames(n: int, lively: bool, shift: int = 0, leaves_after: int | None = None) -> np.ndarray:
    """(n, 240, 320) uint8: a face that keeps still or moves mouth and brows; gone after so many pictures."""
    result = np.full((n, 240, 320), 60, np.uint8)
    for number in range(n if leaves_after is None else leaves_after):
        mouth = float(max(0, np.sin(number / 2))) if lively else 0.1
        left = 90 + shift + round(3 * np.sin(number / 5))
        result[number, 50:190, left : left + 140] = drawn_face(140, mouth, mouth)
    return result


def film(path: Path, label: str, seconds: float = 1.6, *, shift: int = 0, leaves_after: int | None = None,
         sound: bool = True) -> Path:  # fmt: skip
    lively = label == "excited"
    heard = hum(seconds, 240.0 + shift if lively else 120.0 + shift) * (1.0 if lively else 0.4) if sound else None
    return write(path, frames(round(25 * seconds), lively, shift, leaves_after), heard)


@pytest.fixture(scope="module", autouse=True)
def few_episodes():
    """Of meta-validation; how many there are is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "EPISODES", 8)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def films(folder):
    """Two recordings of each label, in one sub-folder per label."""
    made = {}
    for label in LABELS:
        (folder / "support" / label).mkdir(parents=True)
        for take in range(2):
            made[label, take] = film(folder / "support" / label / f"{label}{take}.mp4", label, shift=8 * take)
    return made


def pack_of(folder, films, modalities, name):
    """Twelve people who show the films' features, each in a manner of their own and never twice the same."""
    seen = {key: read_clip(path, MediaSettings(modalities=modalities)) for key, path in films.items()}
    rng, rows, parts = np.random.default_rng(0), [], {modality: [] for modality in modalities}
    for person in range(12):
        manner = {m: rng.normal(0, 0.3, seen["calm", 0].streams[m].values.shape[1:]) for m in modalities}
        for (label, take), clip in seen.items():
            for again in range(2):
                rows.append({"clip_id": f"p{person:02d}-{label}{take}{again}", "subject": f"p{person:02d}",
                             "group": f"p{person:02d}/{take}{again}", "domain": "film", "label": label, "split": "",
                             "duration_s": clip.duration_s, "text": ""})  # fmt: skip
                for modality in modalities:
                    stream = clip.streams[modality]
                    scale = 0.1 + stream.values.std((0, 1))
                    mood = rng.normal(0, 0.3, manner[modality].shape)
                    noise = manner[modality] + mood + rng.normal(0, 0.1, stream.values.shape)
                    parts[modality].append((stream.values + scale * noise, stream))
    views = {
        modality: RaggedViews(
            np.concatenate([v for v, _ in some]).astype(np.float32),
            np.cumsum([0, *(len(v) for v, _ in some)]), some[0][1].nodes, some[0][1].channels, None,
            np.concatenate([s.times for _, s in some]), np.concatenate([s.mask for _, s in some]),
        )
        for modality, some in parts.items()
    }  # fmt: skip
    return open_pack(write_pack(folder / "packs" / name, pd.DataFrame(rows), views, LABELS, name=name))


@pytest.fixture(scope="module")
def pack(folder, films):
    return pack_of(folder, films, ("visual", "audio"), "films")


@pytest.fixture(scope="module")
def run(folder, pack):
    config = RunConfig.preset("test").replace(**SMALL)
    return experiment.train(pack, config, folder / "runs" / "films" / "small", progress_bar=False)


@pytest.fixture(scope="module")
def support(folder, films):
    return folder / "support"


@pytest.fixture(scope="module")
def ready(run, support):
    return adapt(run, support, settings=SETTINGS)


@pytest.fixture(scope="module")
def clip(folder):
    """A recording that is not in the support."""
    return film(folder / "new.mp4", "excited", 2.4, shift=4)


@pytest.fixture(scope="module")
def said(ready, clip):
    return read(ready, clip, text="so here we are again")


def test_the_answer_is_a_distribution_over_the_support_labels_whole_and_over_time(said):
    assert said.labels == LABELS
    assert said.probability.sum() == pytest.approx(1)
    assert said.timeline.spans[0].tolist() == [0.0, 0.8]
    assert said.timeline.spans[-1, 1] == pytest.approx(said.duration_s)
    np.testing.assert_allclose(said.timeline.probability.sum(1), 1)
    assert said.answer == "excited"


def test_windows_of_a_clip_read_from_its_features_are_those_of_the_recording_cut_there(pack, run, clip):
    """Decoding once and cutting gives the frames of that part, on a clock of its own."""
    settings = MediaSettings(modalities=("visual", "audio"))
    features = recorded(clip, pack, settings)
    config = run.config.views
    cut = resident([(features, np.array([[0.8, 1.6]]))], pack, config, "cpu").modalities["audio"]
    part = recorded(clip, pack, settings, start_s=0.8, end_s=1.6)
    again = resident([(part, whole(part))], pack, config, "cpu").modalities["audio"]
    assert abs(len(cut.values) - len(again.values)) <= 1
    n = min(len(cut.values), len(again.values)) - 1
    torch.testing.assert_close(cut.values[1:n], again.values[1:n], atol=0.25, rtol=0.05)
    assert float(cut.times.max()) <= 0.8


def test_two_calls_give_the_same_files_to_the_byte(run, support, clip, said, tmp_path):
    again = predict(run.path, clip, support=support, settings=SETTINGS, text="so here we are again")
    files = [p.to_json(tmp_path / f"{k}.json").read_bytes() for k, p in enumerate((said, again))]
    tables = [p.to_csv(tmp_path / f"{k}.csv").read_bytes() for k, p in enumerate((said, again))]
    assert files[0] == files[1]
    assert tables[0] == tables[1]


def test_the_json_says_everything_and_holds_no_nan(said, tmp_path):
    told = json.loads(said.to_json(tmp_path / "deep" / "p.json").read_text(encoding="utf-8"))
    assert set(told["probability"]) == set(LABELS)
    assert [m["name"] for m in told["modalities"]] == ["visual", "audio"]
    assert told["rules"][0]["firing"] >= told["rules"][1]["firing"]
    assert sum(told["rules"][0]["stands_for"].values()) == pytest.approx(1)
    assert {c["label"] for c in told["support"]["clips"]} == set(LABELS)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["p.json"]


def test_how_many_windows_are_computed_at_once_changes_nothing(run, support, clip, said):
    few = adapt(run, support, settings=dataclasses.replace(SETTINGS, chunk=2))
    np.testing.assert_allclose(read(few, clip).timeline.probability, said.timeline.probability, atol=1e-5)


def test_a_face_that_leaves_is_masked_and_the_clip_is_answered_as_less_typical(ready, folder):
    stays = read(ready, film(folder / "stays.mp4", "calm", 3.2, shift=4))
    leaves = read(ready, film(folder / "leaves.mp4", "calm", 3.2, shift=4, leaves_after=32))
    gone = leaves.timeline.spans[:, 0] > 1.4
    assert (leaves.timeline.observed[gone, 0] == 0).all()
    assert (leaves.timeline.observed[gone, 1] > 0.9).all()
    assert np.isfinite(leaves.timeline.probability).all()
    assert leaves.probability.sum() == pytest.approx(1)
    assert leaves.typicality < stays.typicality
    assert (leaves.timeline.typicality[gone] < stays.timeline.typicality[gone]).all()
    assert any("the others are masked" in remark for remark in leaves.remarks)


@pytest.mark.realdata
def test_on_a_real_film_the_answer_goes_on_when_the_face_has_left_and_is_less_typical(ready):
    said = read(ready, Path(os.environ["STF2M_DATA"]) / "face_media" / "face_noface.mov")
    observed, line = said.timeline.observed[:, 0], said.timeline
    there, gone = observed > 0.95, observed == 0
    assert there.sum() > 3
    assert gone.sum() > 3
    assert np.isfinite(line.probability[gone]).all()
    assert line.typicality[gone].mean() < line.typicality[there].mean()
    assert said.evidence < 0.8


def test_where_nothing_was_observed_there_is_no_answer_but_the_clip_has_one(folder, films, ready, tmp_path):
    pack = pack_of(folder, films, ("visual",), "mute")
    config = RunConfig.preset("test").replace(**SMALL)
    run = experiment.train(pack, config, folder / "runs" / "mute" / "small", progress_bar=False)
    leaves = film(folder / "mute.mp4", "calm", 3.2, leaves_after=32)
    said = predict(run, leaves, support=folder / "support", settings=SETTINGS)
    gone = said.timeline.spans[:, 0] > 1.4
    assert np.isnan(said.timeline.probability[gone]).all()
    assert np.isfinite(said.timeline.probability[~gone]).all()
    assert said.probability.sum() == pytest.approx(1)
    assert json.loads(said.to_json(tmp_path / "p.json").read_text())["timeline"][-1]["p_calm"] is None
    assert figures.prediction(said, glance(leaves, said.duration_s)).axes
    comes = write(folder / "late.mp4", frames(80, False, leaves_after=32)[::-1])
    late = predict(run, comes, support=folder / "support", settings=SETTINGS)
    assert np.isnan(late.timeline.probability[0]).all()
    assert np.isfinite(late.timeline.probability[-1]).all()


def test_a_clip_without_sound_is_read_from_the_face_and_says_so(ready, folder):
    said = read(ready, film(folder / "silent.mp4", "calm", sound=False))
    assert {m.name: m.observed > 0 for m in said.modalities} == {"visual": True, "audio": False}
    assert [m.change for m in said.modalities] == [None, None]
    assert "Read from visual alone. The clip has no audio." in said.in_words()
    assert "no audio track" in said.remarks


def test_what_a_modality_carries_is_the_answer_with_it_minus_without_it(ready, clip, said, folder):
    mute = read(ready, film(folder / "mute_new.mp4", "excited", 2.4, shift=4, sound=False))
    own, without = (next(iter(p.calibration.values())).temperature for p in (said, mute))
    way = said.labels.index(said.answer)
    left = softened(np.log(mute.probability) * without, own)[way]
    assert said.modalities[1].change == pytest.approx(np.log(said.probability[way]) - left, abs=0.02)
    assert said.carried_by in ("visual", "audio")


def test_a_clip_of_the_pack_is_answered_by_its_name_and_a_table_of_its_clips_is_a_support(run, pack):
    own = pack.clips[pack.clips["subject"] == "p00"]
    said = predict(run, own["clip_id"].iloc[0], support=own.iloc[1:][["clip_id", "label"]], settings=SETTINGS)
    assert said.clip == "p00-calm00"
    assert len(said.support) == len(own) - 1
    assert said.answer == "calm"


def test_a_class_with_fewer_clips_counts_as_often_as_it_has_clips(run, films, clip):
    table = pd.DataFrame({"path": [str(films["excited", 0]), str(films["calm", 0]), str(films["excited", 1])],
                          "label": ["excited", "calm", "excited"]})  # fmt: skip
    ready = adapt(run, table, settings=SETTINGS)
    assert ready.support.weight[0].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert ready.names == ("calm0.mp4", "calm0.mp4", "excited0.mp4", "excited1.mp4")
    assert [name for name, _ in ready.given] == ["calm0.mp4", "excited0.mp4", "excited1.mp4"]


def test_whose_clip_it_is_says_the_list_or_the_pack_else_each_is_of_somebody_else(run, pack, films):
    """Ten clips that are said to be of one person move the answer less than ten of ten people (D-75)."""
    table = pd.DataFrame({"path": [str(films[label, 0]) for label in LABELS for _ in range(5)],
                          "label": [label for label in LABELS for _ in range(5)]})  # fmt: skip
    people = {"unnamed": table, "ten": table.assign(subject=[f"p{i}" for i in range(10)]),
              "one": table.assign(subject="ann")}  # fmt: skip
    center = {name: adapt(run, rows, same_person=False).theta.center for name, rows in people.items()}
    assert torch.equal(center["unnamed"], center["ten"])
    known = adapt(run, table, same_person=False).model.anchor[:2].detach()
    assert float((center["one"] - known).norm()) < 0.99 * float((center["ten"] - known).norm())
    own = pack.clips[pack.clips["subject"] == pack.clips["subject"].iloc[0]]
    ready = adapt(run, own[["clip_id", "label"]], same_person=False)
    assert len(set(ready.support.person[0].tolist())) == 1


def test_an_episode_of_the_pack_is_a_clip_with_its_support(run, pack):
    splits = split_subjects(pack, run.config.split)
    batch = EpisodeSampler(pack, splits, "meta_test", run.config.episodes[0], 0).sample(0, 2)
    name, table, truth = from_episode(pack, batch, 1)
    clips = pack.clips.set_index("clip_id")
    assert clips.loc[name, "label"] == truth
    assert clips.loc[table["clip_id"], "label"].tolist() == table["label"].tolist()
    assert name not in set(table["clip_id"])
    assert set(clips.loc[table["clip_id"], "subject"]) == {clips.loc[name, "subject"]}


def test_without_support_what_is_known_of_the_emotions_answers(run, clip):
    said = predict(run, clip, settings=SETTINGS)
    assert said.source == "none"
    assert said.probability.sum() == pytest.approx(1)
    assert "what meta-training knows" in said.in_words()


def test_a_run_that_knows_no_emotions_asks_for_a_support_and_takes_new_labels(folder, pack, films, clip):
    config = RunConfig.preset("test").replace(**SMALL, inner__label_knowledge=False)
    blank = experiment.train(pack, config, folder / "runs" / "films" / "blank", progress_bar=False)
    with pytest.raises(RunError, match="this run knows no emotions beforehand.*Give labelled clips"):
        predict(blank, clip)
    table = {"path": [str(films["calm", 0]), str(films["excited", 0])], "label": ["bored", "amused"]}
    said = predict(blank, clip, support=table, settings=SETTINGS)
    assert said.labels == ("amused", "bored")
    assert sum(said.rules[0].stands_for.values()) == pytest.approx(1)


def test_calibration_is_made_once_kept_whole_and_belongs_to_the_weights(run, support, clip, said):
    path = run.path / FILE
    kept = json.loads(path.read_text())
    assert {"own, 2-way 2-shot, whole clips", "own, 2-way 2-shot, windows of 0.8 s"} <= set(kept["references"])
    known = said.calibration["own, 2-way 2-shot, whole clips"]
    assert known.nll[1] <= known.nll[0]
    before = path.stat().st_mtime_ns
    predict(run, clip, support=support, settings=SETTINGS)
    assert path.stat().st_mtime_ns == before
    path.write_text(json.dumps(kept | {"weights": "of another run"}))
    predict(run, clip, support=support, settings=SETTINGS)
    assert json.loads(path.read_text())["weights"] == kept["weights"]
    path.write_text("{")
    again = predict(run, clip, support=support, settings=SETTINGS)
    assert again.calibration["own, 2-way 2-shot, whole clips"] == known


def test_a_temperature_is_found_again_in_answers_that_were_sharpened_by_it():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 4))
    true = np.exp(softened(logits, 1.0))
    label = (true.cumsum(1) > rng.random((4000, 1))).argmax(1)
    assert fit_temperature(softened(logits, 1.0), label) == pytest.approx(1.0, abs=0.08)
    assert fit_temperature(softened(3 * logits, 1.0), label) == pytest.approx(3.0, abs=0.25)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [(1.0, [[0, 1.0]]), (2.0, [[0, 2.0]]), (3.0, [[0, 2.0], [1, 3.0]]), (3.5, [[0, 2.0], [1, 3.0], [1.5, 3.5]])],
)
def test_windows_overlap_and_the_last_one_ends_with_the_clip(duration, expected):
    np.testing.assert_allclose(windows(duration, 2.0, 1.0), expected)


def test_a_long_recording_is_the_mean_of_its_windows(ready, folder):
    long = write(folder / "long.wav", None, np.tile(hum(2.0, 120.0) * 0.4, 9), sound_codec="pcm_s16le")
    said = read(ready, long)
    assert said.read == "mean of windows"
    np.testing.assert_allclose(said.probability, said.timeline.probability.mean(0), atol=1e-9)


def test_a_truncated_clip_is_refused_in_one_sentence(ready, clip, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 3])
    with pytest.raises(MediaError, match="cannot be read|truncated|ends after") as caught:
        read(ready, cut)
    assert str(caught.value).count("\n") == 0


def test_features_with_other_nodes_are_refused_by_name(folder, pack, run, clip):
    views = {name: pack.view(name) for name in pack.modalities}
    audio = views["audio"]
    views["audio"] = dataclasses.replace(audio, nodes=tuple(reversed(audio.nodes)))
    other = open_pack(write_pack(folder / "packs" / "other", pack.clips, views, LABELS, name="other"))
    config = RunConfig.preset("test").replace(**SMALL, views__modalities=["audio"])
    wrong = experiment.train(other, config, folder / "runs" / "other" / "small", progress_bar=False)
    with pytest.raises(RunError, match=r"audio of new\.mp4 has nodes mel00-04.*expected mel35-39"):
        predict(wrong, clip)
    assert why_not(adapt(wrong), clip).startswith("audio of new.mp4 has nodes")
    assert why_not(adapt(run), clip) == ""


def test_a_pack_that_says_how_its_recordings_were_read_has_clips_read_so(folder, pack):
    views, own = {name: pack.view(name) for name in pack.modalities}, MediaSettings(hop_s=0.01)
    made = {"media": dataclasses.asdict(own)}
    where = folder / "packs" / "fine"
    fine = open_pack(write_pack(where, pack.clips, views, LABELS, name="fine", made_from=made))
    assert media_settings(fine, ("audio",), None).hop_s == 0.01
    assert media_settings(fine, ("audio",), own).modalities == ("audio",)
    with pytest.raises(RunError, match="which made the pack.*Leave media out"):
        media_settings(fine, ("audio",), MediaSettings())
    with pytest.raises(RunError, match="expected some of visual, audio, prosody, text"):
        media_settings(fine, ("gaze",), None)


def test_an_unknown_label_of_the_support_is_refused_with_the_nearest(run, films, clip):
    table = {"path": [str(films["calm", 0]), str(films["excited", 0])], "label": ["calm", "exited"]}
    with pytest.raises(ManifestError, match="label is 'exited' at row 3; expected calm or excited.*excited"):
        predict(run, clip, support=table)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"path": ["a.wav"], "label": ["calm"]}, "clips of at least two labels"),
        ({"path": [""], "label": ["calm"]}, "row 2 of the support names no clip"),
        ({"label": ["calm"]}, "label, and path or clip_id"),
    ],
)
def test_a_support_that_cannot_be_adapted_to_is_refused(run, clip, table, sentence):
    with pytest.raises(EpisodeError, match=sentence):
        predict(run, clip, support=table)


def test_a_clip_that_is_not_there_and_a_pack_that_is_elsewhere_are_named(run, support, clip, ready):
    with pytest.raises(RunError, match="neither a file nor a clip of the pack called 'nowhere.mp4'"):
        read(ready, "nowhere.mp4")
    with pytest.raises(RunError, match="Name it with pack"):
        predict(clip.parent, clip)


def test_senseless_windows_are_refused():
    with pytest.raises(ConfigError, match="hop_s = 3.0; expected more than 0, at most window_s"):
        PredictionSettings(window_s=2.0, hop_s=3.0)


def test_the_figure_shows_the_clip_over_the_answer_with_the_emotions_named(said, clip):
    figure = figures.prediction(said, glance(clip, said.duration_s))
    titles = " ".join(axis.get_title("left") for axis in figure.axes)
    for word in ("seen", "heard", "said", "emotion over time", "observed", "typical", "whole clip", "rules"):
        assert word in titles
    assert "excited" in {text.get_text() for axis in figure.axes for text in axis.texts}
    assert len(figures.prediction(said).axes) == len(figure.axes) - 2


def test_an_emotion_whose_band_is_too_thin_for_its_name_is_known_by_the_colour_beside_its_bar(said):
    certain = dataclasses.replace(said, probability=np.array([0.0, 1.0]))
    (whole,) = (axis for axis in figures.prediction(certain).axes if "whole clip" in axis.get_title("left"))
    bars = [patch for patch in whole.patches if patch.get_height() > 0.1]
    keys = {tuple(bar.get_facecolor()) for bar in bars if bar.get_x() < 0}
    assert len(keys) == 2, "one colour each, also of the emotion without a bar"
    assert keys == {tuple(bar.get_facecolor()) for bar in bars if bar.get_x() >= 0}


def test_the_command_writes_three_files_and_says_it_in_words(run, pack, support, clip, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", str(clip), "--run", str(run.path), "--pack", str(pack.path), "--support", str(support)]
    assert main([*command, "--out", str(out), "--window", "0.8", "--hop", "0.2", "--text", "here we are"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["prediction.json", "prediction.png", "timeline.csv"]
    assert "Adapted to 4 clips of 2 emotions of the same person." in capsys.readouterr().out
    assert main([*command[:1], "nowhere.mp4", *command[2:]]) == 2
    assert "neither a file nor a clip" in capsys.readouterr().err


def test_kinds_of_episode_and_the_rate_of_sound_are_as_the_tests_believe(run):
    assert run.config.episodes == (EpisodeConfig(regime="P", n_way=2, n_shot=1, n_query=2),)
    assert RATE == 16_000
