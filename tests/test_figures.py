"""Figures: drawn from any sensible input without touching, twice the same, and without text on text."""

import copy
import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import lesson_figures
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from stf2m_core import figures
from stf2m_core.data import drawn_faces, landmarks
from stf2m_core.data.media.clip import ClipViews, FaceTrack, Stream
from stf2m_core.data.media.glance import Glance
from stf2m_core.data.pack import Pack, RaggedViews, open_pack
from stf2m_core.errors import ResultError
from stf2m_core.prediction import ModalityReading, Prediction, RuleReading, Timeline
from stf2m_core.shapes import EpisodeBatch

LONG = tuple(f"fine-grained emotion with a very long name, number {i:02d} of twenty-four" for i in range(24))
FEW = ("calm", "happy", "sad")


def make_faces(labels=FEW, n_clips=6, text="well done", n_frames=5) -> Pack:
    """Every label's faces smile more than those of the one before."""
    label = [labels[i % len(labels)] for i in range(n_clips)]
    clips = pd.DataFrame({
        "clip_id": [f"{i:03d}" for i in range(n_clips)], "subject": "s", "group": "g", "domain": "lab",
        "duration_s": 2.0, "label": label, "split": "", "text": text,
    })  # fmt: skip
    mouths = np.linspace(0, 1, n_frames)
    faces = [drawn_faces.face(labels.index(name) / 2, 0.0, mouth) for name in label for mouth in mouths]
    offsets, graph = np.arange(n_clips + 1) * n_frames, landmarks.named_edges()
    views = RaggedViews(np.array(faces, np.float32), offsets, landmarks.NAMES, ("x", "y"), 2.5, edges=graph)
    return Pack(path=Path("pack"), name="faces", title="", licence="", source="", labels=tuple(labels), clips=clips,
                segments=None, modalities=("visual",), digest="0" * 12, _views={"visual": views})  # fmt: skip


def make_pack(labels=FEW, n_subjects=4, n_clips=24, text="A sentence.", with_undefined=False, n_nodes=5) -> Pack:
    generator = np.random.default_rng(1)
    number = np.arange(n_clips)
    label = [labels[i] for i in number % len(labels)]
    if with_undefined:
        label[-1] = ""
    subject = [f"person {i:02d}" for i in number // len(labels) % n_subjects]
    clips = pd.DataFrame({
        "clip_id": [f"{s}/scene {i:03d}" for s, i in zip(subject, number, strict=True)], "subject": subject,
        "group": [f"{s}/g{i % 2}" for s, i in zip(subject, number, strict=True)], "domain": "lab",
        "duration_s": 2.0, "label": label, "split": "", "text": text,
    })  # fmt: skip

    def ragged(counts, nodes, channels, rate, times=None, mask=False):
        offsets = np.concatenate([[0], np.cumsum(counts)])
        values = generator.normal(size=(offsets[-1], nodes, channels)).astype(np.float32)
        seen = generator.uniform(size=values.shape[:2]) > 0.3 if mask else None
        return RaggedViews(
            values=values, offsets=offsets, nodes=tuple(f"node {i}" for i in range(nodes)),
            channels=tuple(f"channel {i}" for i in range(channels)), rate_hz=rate, times=times,
            mask=None if seen is None else seen.astype(np.uint8),
        )  # fmt: skip

    views = {
        "audio": ragged(np.full(n_clips, 40), n_nodes, 4, 20.0),
        "visual": ragged(np.where(number == 1, 0, 10), 3, 2, None, mask=True),
        "text": ragged(np.full(n_clips, 1), 4, 2, None),
    }
    return Pack(path=Path("pack"), name="small", title="", licence="", source="", labels=tuple(labels), clips=clips,
                segments=None, modalities=tuple(views), digest="0" * 12, _views=views)  # fmt: skip


def make_episode(n_way=3, n_shot=2, n_query=2, one_subject=False) -> tuple[Pack, EpisodeBatch]:
    labels = LONG[:n_way] if n_way > 3 else FEW[:n_way]
    n_each = n_shot + n_query
    pack = make_pack(labels, 1 if one_subject else n_each, n_way * n_each)
    if one_subject:
        pack.clips["group"] = ["a" if i < n_way * n_shot else "b" for i in range(len(pack.clips))]
    rows = np.arange(n_way * n_each).reshape(n_each, n_way).T
    tensors = (
        [7], np.arange(n_way)[None], rows[None, :, :n_shot], rows[:, n_shot:].reshape(1, -1),
        np.repeat(np.arange(n_way), n_query)[None],
    )  # fmt: skip
    return pack, EpisodeBatch(*(torch.as_tensor(np.array(t)) for t in tensors))


def make_history(n_steps=40, settings=("P 8-way 1-shot", "C 5-way 5-shot"), kinds=("train", "validation")):
    lines = [
        {"kind": "train", "step": s, "loss": 2 / (1 + s), "accuracy": 0.5, "phase": "warm-up" if s < 9 else "meta"}
        for s in range(n_steps)
    ]
    lines += [
        {"kind": "validation", "step": s, "setting": name, "nll": 1 + 0.01 * s, "accuracy": 0.4, "best": s < 15}
        for s in range(0, n_steps, 10)
        for name in settings
    ]
    return [line for line in lines if line["kind"] in kinds]


def make_clips(n_clips, n_rules, n_labels, seed=0):
    generator = np.random.default_rng(seed)
    firing = generator.dirichlet(np.ones(n_rules), n_clips)
    root = generator.normal(size=(n_rules, 2, 2))
    return {
        "firing": firing, "label": generator.integers(0, n_labels, n_clips), "unit": generator.uniform(size=n_clips),
        "log": -generator.gamma(2, size=n_clips), "points": generator.normal(size=(n_clips, 2)) * 3,
        "centers": generator.normal(size=(n_rules, 2)), "covariances": root @ root.transpose(0, 2, 1),
    }  # fmt: skip


def make_rows(methods, settings):
    return [
        {"method": m, "setting": s, "mean": 0.5 + 0.01 * i, "ci95": 0.02, "subject_low": 0.4, "subject_high": 0.7}
        for i, (s, m) in enumerate(itertools.product(settings, methods))
    ]


def make_differences(variants, settings):
    return [
        {"variant": v, "setting": s, "difference": 0.01 * i - 0.03, "ci95": 0.01}
        for i, (v, s) in enumerate(itertools.product(variants, settings))
    ]


def firing_case(labels, n_clips, n_rules):
    c = make_clips(n_clips, n_rules, len(labels))
    return figures.firing, (c["firing"], c["label"], labels), {"entropy": c["unit"], "typicality": c["log"]}


def rules_case(labels, n_clips, n_rules):
    c = make_clips(n_clips, n_rules, len(labels))
    return figures.rules, (c["centers"], c["covariances"], c["points"], c["label"], labels), {}


def cards_case(n_rules, names):
    share = np.random.default_rng(5).dirichlet(np.ones(6), (3, n_rules))
    share[0, -1] = np.nan
    emotions = ("anger", "disgust", "fear", "happy", "neutral", "sad")
    settings = {"names": [f"voice neutral or anger, face {e} → {e}" for e in emotions * 4][:n_rules]} if names else {}
    return figures.rule_cards, (*share, share[2, :, 0], emotions), settings


def fusion_scores(names, gap=None):
    gaps = {} if gap is None else {"gap": gap, "gap_low": gap - 0.01, "gap_high": gap + 0.02}
    return [{"method": name, "kl": 0.2 + 0.05 * i, "kl_low": 0.19 + 0.05 * i, "kl_high": 0.21 + 0.06 * i} | gaps
            for i, name in enumerate(names)]  # fmt: skip


def factor_scores(readers):
    means = {"Bayes": 0.95, "ceiling": 0.5} | {reader: 0.4 + 0.05 * i for i, reader in enumerate(readers)}
    return [{"factor": factor, "reader": reader, "mean": mean, "ci95": 0.02 if reader != "Bayes" else None}
            for factor in FEW for reader, mean in means.items()]  # fmt: skip


CONDITIONS, EMOTIONS = ("voice", "face"), ("anger", "happy", "neutral")
VOTES = np.random.default_rng(0).integers(1, 9, (40, 2, 3))


def recording_case(words=("is", "it"), video=True, sound=True, n_frames=50):
    """Two seconds with everything that the front end makes, drawn instead of decoded."""
    generator = np.random.default_rng(3)

    def stream(n, nodes, channels):
        seen = (generator.uniform(size=(n, len(nodes))) > 0.3).astype(np.uint8)
        values = generator.normal(size=(n, len(nodes), len(channels))).astype(np.float32) * seen[..., None]
        return Stream(values, np.linspace(0, 1.9, n, dtype=np.float32), seen, nodes, channels)

    regions = ("brow_left", "brow_right", "eye_left", "eye_right", "nose", "cheek_l", "cheek_r", "mouth", "motion")
    streams = {"visual": stream(n_frames, regions, ("brightness", "flow_speed"))} if video else {}
    if sound:
        streams["audio"] = stream(n_frames, tuple(f"bands{i}" for i in range(8)), tuple(f"m{i}" for i in range(5)))
        streams["prosody"] = stream(n_frames, ("energy", "pitch"), ("value",))
    if words:
        streams["text"] = stream(len(words), ("word",), ("hash00",))
    times = np.linspace(0.25, 1.75, 4)
    boxes = np.array([[20, 30, 60, 60]] * 3 + [[np.nan] * 4], np.float32)
    track = FaceTrack(times, boxes, np.ones(4), np.ones(4), (213, 160)) if video else None
    pictures = tuple(generator.integers(0, 255, (4, 160, 213), dtype=np.uint8)) if video else ()
    outline = np.stack([-generator.uniform(size=200), generator.uniform(size=200)], 1)[: 200 * sound]
    seen = Glance(times[: len(pictures)], pictures, 1.0, np.linspace(0, 2, 200)[: 200 * sound], outline)
    return figures.recording, (ClipViews(2.0, streams, track, tuple(words), ()), seen, "$a long name " * 20), {}


def make_prediction():
    """Five windows of a clip of four seconds, two modalities, two rules."""
    spans = np.stack([np.arange(5) / 2, 2 + np.arange(5) / 2], 1)
    share = np.linspace(0.2, 0.6, 5)
    timeline = Timeline(
        spans=spans, probability=np.stack([share, 0.7 - share, np.full(5, 0.3)], 1), typicality=np.linspace(0, 1, 5),
        membership=-np.ones(5), observed=np.ones((5, 2)),
    )  # fmt: skip
    rules = [
        RuleReading(number=n, firing=0.3, usual=0.2, stands_for={"calm": 0.6, "sad": 0.4}, prior={}, nearest="")
        for n in (1, 2)
    ]
    return Prediction(
        clip="clip.wav", duration_s=4.0, labels=FEW, probability=np.array([0.5, 0.3, 0.2]), read="whole",
        typicality=0.5, membership=-1.0, evidence=1.0, timeline=timeline,
        modalities=(ModalityReading(name="audio", observed=1.0, change=0.4),
                    ModalityReading(name="visual", observed=0.0, change=None)),
        rules=tuple(rules), source="own", support=(("a", FEW[0]), ("b", FEW[1])), calibration={},
        words=("dogs", "door"), word_times=(1.0, 3.0), remarks=(), facts={},
    )  # fmt: skip


def make_sweep(methods, regimes):
    """More clips help, the first method most."""
    return [
        {"method": m, "regime": r, "n_shot": k, "mean": 0.3 + 0.1 * k / (number + 1), "ci95": 0.02}
        for r in regimes for number, m in enumerate(methods) for k in (1, 2, 5)
    ]  # fmt: skip


CASES = {
    "method": lambda: (figures.method, (), {}),
    "views": lambda: (figures.views, (make_pack(), 0), {}),
    "views, one modality missing": lambda: (figures.views, (make_pack(), 1), {}),
    "views, long names": lambda: (figures.views, (make_pack(LONG, text="$5 " * 90), 2), {}),
    "views, 68 nodes": lambda: (figures.views, (make_pack(n_nodes=68), 0), {}),
    "label_counts": lambda: (figures.label_counts, (make_pack(),), {}),
    "label_counts, one clip": lambda: (figures.label_counts, (make_pack(("calm",), 1, 1),), {}),
    "label_counts, many": lambda: (figures.label_counts, (make_pack(LONG, 70, 1700, with_undefined=True),), {}),
    "episode": lambda: (figures.episode, make_episode(), {}),
    "episode, one person": lambda: (figures.episode, make_episode(one_subject=True), {}),
    "episode, one class": lambda: (figures.episode, make_episode(1, 1, 1), {}),
    "episode, 24 classes": lambda: (figures.episode, make_episode(24, 10, 15), {}),
    "history": lambda: (figures.history, (make_history(),), {}),
    "history, one line": lambda: (figures.history, (make_history(1, kinds=("train",)),), {}),
    "history, validation only": lambda: (figures.history, (make_history(kinds=("validation",)),), {}),
    "history, 9 long settings": lambda: (figures.history, (make_history(settings=LONG[:9]),), {}),
    "adaptation": lambda: (figures.adaptation, (np.linspace(0, 1, 60).reshape(6, 10), np.ones((6, 10))), {}),
    "adaptation, one episode, no step": lambda: (figures.adaptation, ([[0.5]], [[1.2]]), {}),
    "task_weights": lambda: (figures.task_weights, (np.eye(8, 32), -np.eye(8, 32)), {}),
    "task_weights, 60 episodes": lambda: (figures.task_weights, (np.ones((60, 9)), np.ones((60, 9))), {}),
    "task_weights, zero": lambda: (figures.task_weights, (np.zeros((1, 1)), np.zeros((1, 1))), {}),
    "firing": lambda: firing_case(FEW, 30, 24),
    "firing, one clip, one rule": lambda: firing_case(("calm",), 1, 1),
    "firing, 24 labels": lambda: firing_case(LONG, 9, 60),
    "rules": lambda: rules_case(FEW, 60, 6),
    "rules, one clip, one rule": lambda: rules_case(("calm",), 1, 1),
    "rules, 24 labels": lambda: rules_case(LONG, 400, 40),
    "rule_cards": lambda: cards_case(24, names=True),
    "rule_cards, one rule, no name": lambda: cards_case(1, names=False),
    "fusion": lambda: (figures.fusion, (fusion_scores(("prior", "24 rules, zero-order")),), {"targets": {"goal": 0.2}}),
    "fusion, paired": lambda: (figures.fusion, (fusion_scores(LONG, gap=0.01),), {"targets": {"a": 0.2, "b": 0.3}}),
    "fusion, many": lambda: (figures.fusion, (fusion_scores(LONG),), {}),
    "factors": lambda: (figures.factors, (factor_scores(("full model", "text hidden")),), {}),
    "factors, many": lambda: (figures.factors, (factor_scores(LONG[:9]),), {}),
    "agreement": lambda: (figures.agreement, (VOTES, CONDITIONS, EMOTIONS), {}),
    "taken_for": lambda: (figures.taken_for, (np.full((2, 3, 3), 1 / 3), CONDITIONS, EMOTIONS), {}),
    "face_clip": lambda: (figures.face_clip, (make_faces(), 3), {}),
    "face_clip, many words": lambda: (figures.face_clip, (make_faces(text=" ".join(LONG[:2])), 0), {"n_faces": 3}),
    "face_clip, one frame": lambda: (figures.face_clip, (make_faces(n_frames=1), 0), {}),
    "face_tracks": lambda: (figures.face_tracks, (make_faces(),), {}),
    "face_tracks, one label, one clip": lambda: (figures.face_tracks, (make_faces(FEW[:1], 1),), {}),
    "face_tracks, long names": lambda: (figures.face_tracks, (make_faces(LONG[:3], 12),), {}),
    "face_graph": lambda: (
        figures.face_graph,
        (np.random.default_rng(0).random((2, 5, 2)), [(0, 1), (1, 4), (2, 3)], ("a face", "another")),
        {},
    ),
    "recording": lambda: recording_case(),
    "recording, many words": lambda: recording_case("somebody said something extraordinarily long here".split() * 6),
    "recording, sound alone": lambda: recording_case(video=False, words=()),
    "recording, one picture": lambda: recording_case(sound=False, words=(), n_frames=1),
    "results": lambda: (figures.results, (make_rows(("st-f2m", "ridge-prototype"), ("P", "D", "C")),), {"chance": 0.2}),
    "results, one": lambda: (figures.results, (make_rows(("st-f2m",), ("P",)),), {}),
    "results, many": lambda: (figures.results, (make_rows(LONG[:9], LONG[:4]),), {"chance": {LONG[0]: 0.1}}),
    "shots": lambda: (figures.shots, (make_sweep(("st-f2m", "ridge-prototype"), ("P", "D")),), {"chance": 0.2}),
    "shots, one": lambda: (figures.shots, (make_sweep(("st-f2m",), ("C",)),), {}),
    "shots, many": lambda: (figures.shots, (make_sweep(LONG[:6], ("P", "D", "C")),), {"chance": 0.1}),
    "ablation": lambda: (figures.ablation, (make_differences(("no-fuzzy", "no-meta-rnn"), ("P", "C")),), {}),
    "ablation, one": lambda: (figures.ablation, (make_differences(("no-fuzzy",), ("P",)),), {}),
    "ablation, many": lambda: (figures.ablation, (make_differences(LONG[:9], LONG[:9]),), {"metric": "NLL"}),
    "confusion": lambda: (figures.confusion, (np.arange(9).reshape(3, 3), FEW), {}),
    "confusion, one class": lambda: (figures.confusion, (np.array([[4]]), ("calm",)), {}),
    "confusion, 24 labels, one empty": lambda: (figures.confusion, (np.diag(np.arange(24)), LONG), {}),
}
CASES |= lesson_figures.CASES


def crowded_prediction():
    """Twenty-four emotions with long names, many words, two windows without an answer, nothing typical."""
    plain_one = make_prediction()
    share = np.random.default_rng(2).dirichlet(np.ones(24), 6)
    line = dataclasses.replace(plain_one.timeline, probability=share[1:].copy(), typicality=np.zeros(5))
    line.probability[2:4], line.typicality[2:4], line.observed[2:4] = np.nan, np.nan, 0.0
    meant = {name: 1 - 0.02 * number for number, name in enumerate(LONG)}
    return dataclasses.replace(
        plain_one, clip="$a very long name/" * 9, labels=LONG, probability=share[0], timeline=line, evidence=0.3,
        typicality=0.01, words=tuple("somebody said something long".split() * 9),
        word_times=tuple(np.linspace(0, 4, 36)), rules=tuple(dataclasses.replace(rule, stands_for=meant)
                                                             for rule in plain_one.rules),
        modalities=tuple(ModalityReading(name=f"modality number {n}", observed=1.0, change=0.7 * n - 0.9)
                         for n in range(2)),
    )  # fmt: skip


def glance_of_four_seconds() -> Glance:
    seen = recording_case()[1][1]
    return dataclasses.replace(seen, times=2 * seen.times, sound_times=2 * seen.sound_times)


def bare_prediction():
    """One modality, no rules, one window that is the whole clip."""
    said = make_prediction()
    line = dataclasses.replace(said.timeline, **{
        name: getattr(said.timeline, name)[:1] for name in ("probability", "typicality", "membership")
    }, spans=np.array([[0.0, 0.4]]), observed=np.ones((1, 1)))  # fmt: skip
    return dataclasses.replace(said, duration_s=0.4, timeline=line, typicality=None, membership=None, rules=(),
                               words=(), word_times=(), source="none", support=(),
                               modalities=(ModalityReading(name="audio", observed=1.0, change=None),))  # fmt: skip


CASES |= {
    "prediction": lambda: (figures.prediction, (make_prediction(),), {}),
    "prediction, of a recording": lambda: (figures.prediction, (make_prediction(), glance_of_four_seconds()), {}),
    "prediction, crowded": lambda: (figures.prediction, (crowded_prediction(),), {}),
    "prediction, little to say": lambda: (figures.prediction, (bare_prediction(),), {}),
}


def plain(thing):
    """Anything an argument holds, as bytes that can be compared."""
    if isinstance(thing, Pack):
        return plain([thing.clips, thing.labels, *(dataclasses.asdict(thing.view(m)) for m in thing.modalities)])
    if isinstance(thing, EpisodeBatch):
        return [getattr(thing, field.name).tolist() for field in dataclasses.fields(thing)]
    if dataclasses.is_dataclass(thing):
        return {field.name: plain(getattr(thing, field.name)) for field in dataclasses.fields(thing)}
    if isinstance(thing, pd.DataFrame):
        return thing.to_csv()
    if isinstance(thing, np.ndarray):
        return thing.dtype.str, thing.shape, thing.tobytes()
    if isinstance(thing, dict):
        return {key: plain(value) for key, value in thing.items()}
    return [plain(part) for part in thing] if isinstance(thing, list | tuple) else thing


def state(arguments, settings):
    look = {key: value for key, value in matplotlib.rcParams.items() if key != "backend"}
    return plain([*arguments, settings]), look


@dataclasses.dataclass(frozen=True)
class Drawn:
    figure: Figure
    before: object
    after: object


@pytest.fixture(scope="module", params=CASES)
def drawn(request) -> Drawn:
    draw, arguments, settings = CASES[request.param]()
    before = copy.deepcopy(state(arguments, settings))
    figure = draw(*arguments, **settings)
    return Drawn(figure, before, state(arguments, settings))


def texts_of(figure: Figure) -> list[tuple[str, matplotlib.transforms.Bbox]]:
    """Visible texts with their boxes in pixels; tick labels outside their axis' limits are not drawn, so left out."""
    found = []
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else figure._get_renderer()
    skipped = set()
    for axis in figure.get_axes():
        for one in (axis.xaxis, axis.yaxis):
            limits = sorted(one.get_view_interval())
            shown = {id(tick) for tick in one._update_ticks()}
            for tick in (*one.majorTicks, *one.minorTicks):
                if id(tick) not in shown or not limits[0] <= tick.get_loc() <= limits[1]:
                    skipped |= {id(tick.label1), id(tick.label2)}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in skipped:
            found.append((text.get_text(), text.get_window_extent(renderer)))
    return found


def collisions(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than a seam of 1.5 pixels."""
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(texts_of(figure), 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1.5
    ]


def test_every_public_figure_has_a_case():
    assert {name.split(",")[0] for name in CASES} == set(figures.__all__) - {"save"}


def test_a_figure_is_a_figure_of_readable_size(drawn):
    figure = drawn.figure
    assert isinstance(figure, Figure) and figure.get_axes()
    assert 2 <= figure.get_figwidth() <= 10.5 and figure.get_figheight() <= 15
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9


def test_no_text_lies_on_another(drawn):
    assert collisions(drawn.figure) == []


def test_all_axes_and_all_text_lie_inside_the_figure(drawn):
    figure = drawn.figure
    width, height = figure.bbox.size
    boxes = [("axis", axis.get_window_extent()) for axis in figure.get_axes()] + texts_of(figure)
    outside = [
        name for name, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1 or b.width <= 0
    ]
    assert outside == []


@pytest.mark.parametrize("name", [name for name in figures.__all__ if name != "save"])
def test_a_figure_drawn_twice_gives_the_same_bytes(name, tmp_path):
    paths = []
    for number in range(2):
        draw, arguments, settings = CASES[name]()
        paths.append(figures.save(draw(*arguments, **settings), tmp_path / f"{number}.png"))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"\x89PNG")


def test_a_figure_saved_twice_gives_the_same_bytes_and_leaves_nothing_aside(tmp_path):
    figure = figures.history(make_history())
    first, again = (figures.save(figure, tmp_path / "new" / name).read_bytes() for name in ("first.png", "again.png"))
    assert first == again
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["again.png", "first.png"]


def test_drawing_leaves_its_input_and_the_settings_of_matplotlib_alone(drawn):
    assert drawn.after == drawn.before


def test_the_callers_settings_of_matplotlib_do_not_show(tmp_path):
    rows = make_rows(("st-f2m",), ("P",))
    usual = figures.save(figures.results(rows), tmp_path / "usual.png").read_bytes()
    with matplotlib.rc_context({"font.size": 22, "axes.facecolor": "red", "savefig.dpi": 30, "axes.grid": True}):
        odd = figures.save(figures.results(rows), tmp_path / "odd.png").read_bytes()
    assert odd == usual


def test_pyplot_is_never_imported():
    code = (
        "import sys; from stf2m_core import figures; figures.confusion([[1, 2], [3, 4]], ['a', 'b'])._repr_png_();"
        "figures.method(); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, env=os.environ, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_notebook_can_show_a_figure():
    data, size = figures.confusion([[1]], ["calm"])._repr_png_()
    assert data.startswith(b"\x89PNG") and size["width"] > 0


def test_a_figure_is_saved_only_as_png(tmp_path):
    with pytest.raises(ResultError, match=r"'a\.pdf'; expected a name that ends in \.png"):
        figures.save(figures.confusion([[1]], ["calm"]), tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_too_long_stay_apart():
    axis = figures.confusion(np.eye(24), LONG).axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert len(set(names)) == 24 and max(map(len, names)) <= 26


def test_the_confusion_is_in_percent_of_the_rows():
    figure = figures.confusion([[1, 3], [0, 7]], ["a", "b"])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["100", "25", "75"]


def test_label_counts_are_those_of_the_pack():
    pack = make_pack(n_clips=7, n_subjects=2, with_undefined=True)
    axis = next(a for a in figures.label_counts(pack).axes if a.images)
    table = pd.crosstab(pack.clips["label"], pack.clips["subject"]).reindex([*FEW, ""])
    assert np.array(axis.images[0].get_array()).tolist() == table.to_numpy().tolist()


def test_an_episode_says_what_its_sides_do_not_share():
    pack, batch = make_episode()
    assert "support of 2 subjects, query of 2 subjects, none shared" in figures.episode(pack, batch).get_suptitle()
    pack, batch = make_episode(one_subject=True)
    said = figures.episode(pack, batch).get_suptitle()
    assert "subject person 00: support of 1 group, query of 1 group, none shared" in said


def test_an_episode_says_when_its_sides_share_a_subject():
    pack, batch = make_episode()
    leaky = dataclasses.replace(batch, query=batch.query.index_fill(1, torch.tensor([0]), int(batch.support[0, 0, 0])))
    assert "1 SHARED" in figures.episode(pack, leaky).get_suptitle()


def test_an_episode_counts_the_clips_it_does_not_show():
    pack, batch = make_episode(2, 5, 15)
    shown = [text.get_text() for text in figures.episode(pack, batch).axes[0].texts]
    n_more = [int(text.removeprefix("+ ")) for text in shown if text.startswith("+ ")]
    n_cells = sum(text.isdigit() for text in shown)
    assert n_cells + sum(n_more) == 2 * (5 + 15)


def test_the_chosen_step_is_the_last_best_one():
    figure = figures.history(make_history())
    assert "chosen: step 10" in [text.get_text() for text in figure.axes[1].get_legend().get_texts()]


def test_a_rule_is_drawn_along_its_covariance():
    turned = np.array([[[2.5, 1.5], [1.5, 2.5]]])  # variance 4 along the diagonal, 1 across it
    ellipse = figures.rules([[0, 0]], turned, np.zeros((1, 2)), [0], ["calm"]).axes[0].patches[0]
    assert (ellipse.width, ellipse.height) == pytest.approx((4, 2))
    assert ellipse.angle % 180 == pytest.approx(45)


def test_mean_firing_is_per_emotion():
    figure = figures.firing([[1, 0], [0, 1], [0.5, 0.5], [1, 0]], [0, 0, 2, -1], FEW)
    shown = figure.axes[0].images[0].get_array()
    assert np.ma.filled(shown, -1).tolist() == [[0.5, 0.5], [-1, -1], [0.5, 0.5]]


def test_windows_without_an_answer_leave_a_gap_between_the_bands():
    axis = next(a for a in figures.prediction(crowded_prediction()).axes if a.get_ylabel() == "probability")
    spans = {(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for c in axis.collections for path in c.get_paths()}
    assert spans == {(0.0, 1.75), (2.75, 4.0)}  # of five windows each 0.5 s, the third and the fourth are unanswered
    assert "nothing observed" in [text.get_text() for text in axis.texts]


def test_a_difference_within_its_interval_is_hollow():
    rows = [{"variant": v, "setting": "P", "difference": d, "ci95": 0.02} for v, d in (("a", -0.03), ("b", -0.01))]
    faces = [line.get_markerfacecolor() for line in figures.ablation(rows).axes[0].lines if line.get_marker() == "o"]
    assert faces[0] != "white" and faces[1] == "white"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.views(make_pack(), 99), "row 99; expected 0 to 23"),
        (lambda: figures.episode(*make_episode(), 4), "episode 4; expected 0 to 0"),
        (lambda: figures.history([]), "no lines of history; expected at least one"),
        (lambda: figures.history([{"kind": "test", "step": 0}]), r"kind \['test'\]; expected train or validation"),
        (lambda: figures.firing([[np.nan]], [0], FEW), "firing has 1 values that are no finite numbers"),
        (lambda: figures.firing([[1.0]], [3], FEW), "labels from 3 to 3; expected -1 to 2"),
        (lambda: figures.firing([[1.0]], [0, 1], FEW), r"label has shape \(2,\); expected \(1,\)"),
        (lambda: figures.rules([[0, 0]], [[[1, 2], [2, 1]]], [[0, 0]], [0], FEW), "rule 0 has the eigenvalue -1"),
        (lambda: figures.adaptation([[1.0]], [[1.0, 2.0]]), r"nll has shape \(1, 2\); expected \(1, 1\)"),
        (lambda: figures.adaptation([[np.inf]], [[1.0]]), "accuracy has 1 values that are no finite numbers"),
        (lambda: figures.results([]), "no rows of results"),
        (lambda: figures.ablation([]), "no rows of the ablation"),
        (lambda: figures.confusion([[1, -1], [0, 1]], ["a", "b"]), "matrix has the value -1; expected counts"),
        (lambda: figures.confusion([[1]], ["a", "b"]), r"matrix has shape \(1, 1\); expected \(2, 2\)"),
        (lambda: figures.task_weights(np.zeros((0, 3)), np.zeros((0, 3))), "no episodes"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ResultError, match=message):
        draw()


@pytest.mark.realdata
def test_real_packs_are_drawn_without_text_on_text():
    packs = sorted(Path(os.environ["STF2M_DATA"]).rglob("pack.json"))
    if not packs:
        pytest.skip("no pack below STF2M_DATA")
    for path in packs:
        pack = open_pack(path.parent)
        assert collisions(figures.label_counts(pack)) == []
        assert [collisions(figures.views(pack, row)) for row in (0, len(pack) // 2, len(pack) - 1)] == [[], [], []]
