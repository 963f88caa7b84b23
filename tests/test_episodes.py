"""Meta-splits and episodes: nothing on both sides, exact counts, repeatable and even draws, honest refusals."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from stf2m_core.config import EpisodeConfig, SplitConfig
from stf2m_core.data.pack import RaggedViews, open_pack, write_pack
from stf2m_core.episodes import SPLITS, EpisodeSampler, Splits, load_episodes, save_episodes, split_subjects
from stf2m_core.errors import EpisodeError

LABELS = ("anger", "calm", "fear", "joy")
EVERY = 10_000


def table(rows):
    """clips.csv from (subject, group, domain, label) of each clip."""
    columns = dict(zip(("subject", "group", "domain", "label"), zip(*rows, strict=True), strict=True))
    names = [f"clip-{i}" for i in range(len(rows))]
    return pd.DataFrame({"clip_id": names, **columns, "duration_s": 1.0, "split": "", "text": ""})


def packed(folder, rows, labels=LABELS, **columns):
    n = len(rows)
    views = RaggedViews(np.zeros((n, 1, 1), np.float32), np.arange(n + 1), ("v",), ("x",), 1.0)
    path = write_pack(
        folder / "pack", table(rows).assign(**columns), {"a": views}, labels, name="small", overwrite=True
    )
    return open_pack(path)


def people(n_subjects=16, n_groups=3, per_label=2, per_domain=4, labels=LABELS, seed=0):
    """Every subject with every label, `per_label` times in each of its groups; row order tells nothing."""
    rows = [
        (f"s{s:02d}", f"s{s:02d}/{g}", f"d{s // per_domain}", label)
        for s in range(n_subjects)
        for g in range(n_groups)
        for label in labels
        for _ in range(per_label)
    ]
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def whole(pack, split="meta_train", labels=None):
    """All clips of the pack as one meta-split."""
    rows, every = np.flatnonzero(pack.label_ids >= 0), np.arange(len(pack.labels) if labels is None else labels)
    return Splits({split: rows}, {split: every}, {split: tuple(np.unique(pack.clips["subject"]))})


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("even"), people())


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Unlike numbers of clips per subject, group and label; domains of 2 to 5 subjects; some labels undefined."""
    rng = np.random.default_rng(3)
    domains = np.repeat(["d0", "d1", "d2", "d3"], [2, 5, 4, 5])
    rows = []
    for s, domain in enumerate(domains):
        for g in range(2 + s % 3):
            for label in (*LABELS, ""):
                rows += [(f"s{s:02d}", f"s{s:02d}/{g}", domain, label)] * rng.integers(1, 5)
    return packed(tmp_path_factory.mktemp("uneven"), [rows[i] for i in rng.permutation(len(rows))])


def drawn(pack, n_episodes, **settings):
    """Episodes from all clips of the pack."""
    return EpisodeSampler(pack, whole(pack), "meta_train", EpisodeConfig(**settings), 0).sample(0, n_episodes)


def codes(pack, column):
    return np.unique(pack.clips[column].to_numpy(str), return_inverse=True)[1]


def share_any(one, two):
    """(episode,) whether any entry of a row of `one` is in the same row of `two`."""
    return (one[:, :, None] == two[:, None, :]).any((1, 2))


def sides(batch):
    return batch.support.flatten(1).numpy(), batch.query.numpy()


KINDS = [
    EpisodeConfig(regime=regime, n_way=n_way, n_shot=n_shot, n_query=n_query, query_prior=prior)
    for regime, n_way, n_shot, n_query in (("D", 3, 2, 2), ("C", 2, 1, 3), ("P", 4, 1, 1), ("D", 4, 1, 1))
    for prior in ("balanced", "natural")
    if prior == "balanced" or n_way == 4
]


def titled(kind):
    return kind.title


# Meta-splits


@pytest.mark.parametrize("fold", range(4))
def test_meta_splits_share_no_subject_group_or_clip_and_leave_none_out(pack, fold):  # I-5
    splits = split_subjects(pack, SplitConfig(fold=fold))
    for column in ("subject", "group", "clip_id"):
        sets = [set(pack.clips[column].iloc[splits.rows[split]]) for split in SPLITS]
        assert all(sets)
        assert sum(map(len, sets)) == len(set.union(*sets)) == pack.clips[column].nunique()
    for split in SPLITS:
        assert set(pack.clips["subject"].iloc[splits.rows[split]]) == set(splits.subjects[split])
        assert splits.labels[split].tolist() == [0, 1, 2, 3]


def test_every_subject_is_in_meta_test_in_exactly_one_fold(pack):
    tested = [split_subjects(pack, SplitConfig(fold=fold, n_folds=5)).subjects["meta_test"] for fold in range(5)]
    assert sorted(name for names in tested for name in names) == [f"s{s:02d}" for s in range(16)]
    assert max(map(len, tested)) - min(map(len, tested)) <= 1


def test_a_block_of_neighbouring_subjects_is_meta_test_and_those_that_follow_are_meta_validation(pack):
    splits = split_subjects(pack, SplitConfig(fold=3, n_val_subjects=2))
    assert splits.subjects["meta_test"] == ("s12", "s13", "s14", "s15")
    assert splits.subjects["meta_val"] == ("s00", "s01")
    assert splits.subjects["meta_train"] == tuple(f"s{s:02d}" for s in range(2, 12))


def test_held_out_labels_are_in_one_meta_split_only_and_so_are_their_clips(pack):
    held_out = [SplitConfig(n_val_labels=1, n_test_labels=1, label_seed=seed) for seed in range(20)]
    for config in held_out[:5]:
        splits = split_subjects(pack, config)
        assert sorted(np.concatenate([splits.labels[split] for split in SPLITS]).tolist()) == [0, 1, 2, 3]
        assert [len(splits.labels[split]) for split in SPLITS] == [2, 1, 1]
        for split in SPLITS:
            assert set(pack.label_ids[splits.rows[split]]) == set(splits.labels[split])
    drawn = {tuple(split_subjects(pack, config).labels["meta_test"]) for config in held_out}
    assert len(drawn) == 4, "the choice follows the seed"


def test_clips_with_an_undefined_label_are_in_no_meta_split(uneven):
    splits = split_subjects(uneven, SplitConfig())
    used = np.concatenate([splits.rows[split] for split in SPLITS])
    assert sorted(used) == np.flatnonzero(uneven.label_ids >= 0).tolist()
    assert (uneven.label_ids < 0).sum() > 50


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SplitConfig(n_folds=17), "16 subjects; expected at least 17 for 17 folds"),
        (SplitConfig(n_val_subjects=15), "16 subjects; expected at least 17 for 4 folds and 15 validation subjects"),
        (SplitConfig(n_val_subjects=12), "0 subjects left for meta-train; expected at least 1"),
        (SplitConfig(n_val_labels=2, n_test_labels=1), "3 held-out labels of 4; expected at least 2 left"),
    ],
)
def test_meta_splits_that_the_pack_cannot_give_are_refused_with_both_counts(pack, config, expected):
    with pytest.raises(EpisodeError, match=expected):
        split_subjects(pack, config)


def test_a_dialogue_of_several_subjects_is_never_on_two_sides_of_a_meta_split(tmp_path):
    rows = [(f"s{s:02d}", f"dialogue-{s // 3}", "film", label) for s in range(16) for label in LABELS]
    pack = packed(tmp_path, rows)
    try:
        splits = split_subjects(pack, SplitConfig())
    except EpisodeError as error:
        assert "group" in str(error)
        return
    groups = [set(pack.clips["group"].iloc[splits.rows[split]]) for split in SPLITS]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


# What an episode is


@pytest.mark.parametrize("kind", KINDS, ids=titled)
def test_counts_are_exact_and_labels_true(uneven, kind):  # I-6
    sampler = EpisodeSampler(uneven, whole(uneven), "meta_train", kind, 0)
    batch = sampler.sample(0, 500)
    assert batch.ids.tolist() == list(range(500))
    assert batch.support.shape == (500, kind.n_way, kind.n_shot)
    assert batch.query.shape == batch.query_label.shape == (500, kind.n_way * kind.n_query)
    assert all(part.dtype == torch.int64 for part in (batch.ids, batch.classes, batch.support, batch.query))
    labels = torch.from_numpy(uneven.label_ids.copy())
    assert torch.equal(labels[batch.support], batch.classes[..., None].expand(-1, -1, kind.n_shot))
    assert torch.equal(labels[batch.query], batch.classes.gather(1, batch.query_label))
    assert (batch.classes.sort(1).values.diff(dim=1) > 0).all(), "classes of an episode differ"
    if kind.query_prior == "balanced":
        counts = torch.nn.functional.one_hot(batch.query_label, kind.n_way).sum(1)
        assert (counts == kind.n_query).all()


@pytest.mark.parametrize("kind", KINDS, ids=titled)
def test_support_and_query_never_share_a_clip_person_or_group_in_ten_thousand_episodes(uneven, kind):  # I-5
    batch = EpisodeSampler(uneven, whole(uneven), "meta_train", kind, 1).sample(0, EVERY)
    support, query = sides(batch)
    assert not share_any(support, query).any()
    for side in (support, query):
        assert (np.diff(np.sort(side, 1), axis=1) > 0).all(), "drawn without replacement"
    subject, group, domain = (codes(uneven, column) for column in ("subject", "group", "domain"))
    assert not share_any(group[support], group[query]).any()
    assert (domain[query] == domain[support[:, :1]]).all() and (domain[support] == domain[support[:, :1]]).all()
    if kind.regime == "P":
        assert (subject[support] == subject[support[:, :1]]).all()
        assert (subject[query] == subject[support[:, :1]]).all()
        assert (group[support] == group[support[:, :1]]).all(), "one group gives the support"
    else:
        assert not share_any(subject[support], subject[query]).any()


@pytest.mark.parametrize("kind", KINDS, ids=titled)
def test_episodes_use_the_clips_and_labels_of_their_meta_split_only(uneven, kind):
    rows = split_subjects(uneven, SplitConfig()).rows["meta_train"]
    labels = np.array([0, 2, 3]) if kind.n_way < 4 else np.arange(4)
    rows = rows[np.isin(uneven.label_ids[rows], labels)]
    batch = EpisodeSampler(uneven, Splits({"x": rows}, {"x": labels}, {"x": ()}), "x", kind, 0).sample(0, 500)
    assert np.isin(np.concatenate(sides(batch), 1), rows).all()
    assert np.array_equal(np.unique(batch.classes), labels)


def test_novel_emotions_at_meta_test_were_never_in_a_training_episode(tmp_path):
    labels = tuple("abcdefghi")
    pack = packed(tmp_path, people(labels=labels, n_groups=1), labels)
    splits = split_subjects(pack, SplitConfig(n_val_labels=3, n_test_labels=3, label_seed=5))
    kind = EpisodeConfig(regime="C", n_way=3, n_query=1)
    seen = [
        set(EpisodeSampler(pack, splits, split, kind, 0).sample(0, 200).classes.flatten().tolist()) for split in SPLITS
    ]
    assert [len(labels) for labels in seen] == [3, 3, 3]
    assert len(set.union(*seen)) == 9


def test_undefined_labels_are_never_drawn(uneven):
    for regime in ("P", "D"):
        kind = EpisodeConfig(regime=regime, n_way=4, n_query=1, query_prior="natural")
        batch = EpisodeSampler(uneven, split_subjects(uneven, SplitConfig()), "meta_train", kind, 0).sample(0, 2000)
        assert (uneven.label_ids[np.concatenate(sides(batch), 1)] >= 0).all()


def test_personal_episodes_hold_one_person_even_where_groups_hold_several(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        (f"s{s}", f"dialogue-{g}", "d", LABELS[rng.integers(4)])
        for g in range(8)
        for s in (g % 4, (g + 1) % 4)
        for _ in range(3)
    ]
    pack = packed(tmp_path, rows)
    kind = EpisodeConfig(regime="P", n_way=2, n_query=1)
    batch = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, 500)
    support, query = sides(batch)
    subject, labels = codes(pack, "subject"), torch.from_numpy(pack.label_ids.copy())
    assert (subject[np.concatenate([support, query], 1)] == subject[support[:, :1]]).all()
    assert torch.equal(labels[batch.support], batch.classes[..., None])
    assert len(np.unique(subject[support])) == 4, "everybody can be the person"
    assert not share_any(codes(pack, "group")[support], codes(pack, "group")[query]).any()


def test_support_and_query_share_no_group_where_groups_hold_several_people(tmp_path):
    rows = [(f"s{s}", f"dialogue-{s // 2}", "d", label) for s in range(8) for label in LABELS for _ in range(2)]
    pack = packed(tmp_path, rows)
    batch = drawn(pack, 500, n_way=2, n_query=1)
    group = codes(pack, "group")
    assert not share_any(*(group[side] for side in sides(batch))).any()


# What cannot be given is refused at construction


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"regime": "D", "n_way": 5}, "4 classes; expected at least 5 for 5-way episodes .in meta_train of"),
        ({"regime": "D", "n_way": 3, "n_shot": 19}, "at most 0 classes have 19 support and 5 query clips.*expected 3"),
        ({"regime": "C", "n_way": 3, "n_query": 19}, "at most 0 classes have 1 support and 19 query clips.*expected 3"),
        (
            {"regime": "P", "n_way": 2, "n_shot": 3, "n_query": 1},
            "0 classes have 3 support clips in one group and 1 query",
        ),
        (
            {"regime": "P", "n_way": 2, "n_shot": 1, "n_query": 5},
            "0 classes have 1 support clips in one group and 5 query",
        ),
        ({"regime": "D", "n_way": 4, "n_query": 25, "query_prior": "natural"}, "at most 0 classes"),
        ({"regime": "P", "n_way": 4, "n_query": 5, "query_prior": "natural"}, "expected 4"),
    ],
)
def test_what_the_clips_cannot_give_is_refused_at_construction_with_both_counts(pack, settings, expected):  # I-6
    with pytest.raises(EpisodeError, match=expected):
        EpisodeSampler(pack, whole(pack), "meta_train", EpisodeConfig(**settings), 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"regime": "D", "n_way": 4, "n_shot": 18, "n_query": 6},
        {"regime": "P", "n_way": 4, "n_shot": 2, "n_query": 4},
        {"regime": "P", "n_way": 4, "n_shot": 2, "n_query": 4, "query_prior": "natural"},
    ],
)
def test_the_largest_request_that_the_clips_can_give_is_met(pack, settings):
    kind = EpisodeConfig(**settings)
    batch = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, 100)
    support, query = sides(batch)
    assert not share_any(support, query).any()
    assert (pack.label_ids[support].reshape(100, 4, -1) == batch.classes.numpy()[..., None]).all()


def test_a_single_class_short_is_refused_with_the_number_found(tmp_path):
    rows = [row for row in people(n_groups=2) if row[3] != "joy" or row[1].endswith("0")]
    pack = packed(tmp_path, rows)
    with pytest.raises(EpisodeError, match="3 classes have 1 support clips.*expected 4 for P 4-way 1-shot"):
        EpisodeSampler(pack, whole(pack), "meta_train", EpisodeConfig(regime="P", n_way=4, n_query=1), 0)


def test_a_single_person_gives_no_domain_episode(tmp_path):
    pack = packed(tmp_path, people(n_subjects=3, per_domain=1))
    with pytest.raises(EpisodeError, match="1 subject in the largest domain; expected at least 2"):
        EpisodeSampler(pack, whole(pack), "meta_train", EpisodeConfig(n_way=2), 0)


def test_episodes_of_rare_classes_do_not_run_out_half_way(tmp_path):
    """Three emotions that two people each show: few bipartitions will do, and 50 draws do not always meet one."""
    n_accepted = 0
    for seed in range(6):
        rare = np.random.default_rng(seed).random((3, 8)).argsort(1)[:, :2]
        labels = ("a", "b", "c", "d", "e")
        shows = {label: {f"s{s:02d}" for s in who} for label, who in zip("cde", rare, strict=True)}
        rows = people(n_subjects=8, per_domain=8, labels=labels, per_label=2)
        rows = [row for row in rows if row[3] not in shows or row[0] in shows[row[3]]]
        pack = packed(tmp_path / str(seed), rows, labels)
        try:
            sampler = EpisodeSampler(pack, whole(pack), "meta_train", EpisodeConfig(n_way=5, n_query=2), 0)
        except EpisodeError:
            continue
        assert len(sampler.sample(0, 1200)) == 1200
        n_accepted += 1
    assert n_accepted > 0


@pytest.mark.parametrize(("regime", "n_query"), [("D", 5), ("P", 4)])
def test_natural_queries_of_some_of_the_classes_are_given_or_refused_at_construction(tmp_path, regime, n_query):
    rows = [
        row
        for row in people(n_subjects=4, n_groups=2, per_label=4)
        if row[3] in ("joy", "calm") or row[1].endswith("0")
    ]
    pack = packed(tmp_path, rows)
    kind = EpisodeConfig(regime=regime, n_way=2, n_query=n_query, query_prior="natural")
    try:
        sampler = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0)
    except EpisodeError:
        return
    assert sampler.sample(0, 300).query.shape == (300, 2 * n_query)


# Streams


@pytest.mark.parametrize("kind", KINDS, ids=titled)
def test_an_episode_depends_on_its_number_alone(uneven, kind):  # I-6
    sampler = EpisodeSampler(uneven, whole(uneven), "meta_train", kind, 7)
    first = sampler.sample(0, 100)
    again = EpisodeSampler(uneven, whole(uneven), "meta_train", kind, 7)
    parts = [again.sample(37, 63), again.sample(0, 37, chunk=5)]
    alone = again.sample(99, 1)
    for name in ("ids", "classes", "support", "query", "query_label"):
        expected = getattr(first, name)
        assert torch.equal(torch.cat([getattr(part, name) for part in parts[::-1]]), expected)
        assert torch.equal(getattr(again.sample(0, 100, chunk=1), name), expected)
        assert torch.equal(getattr(alone, name), expected[99:])


def same(one, two):
    """Share of episodes whose first support clip is the same."""
    return float((one.support[:, 0, 0] == two.support[:, 0, 0]).double().mean())


@pytest.mark.parametrize("regime", ["D", "P"])
def test_another_seed_split_or_kind_draws_another_stream(pack, regime):  # I-6
    kind = EpisodeConfig(regime=regime, n_way=2, n_query=1)
    first = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, 600)
    others = [
        EpisodeSampler(pack, whole(pack), "meta_train", kind, 1),
        EpisodeSampler(pack, whole(pack, "meta_val"), "meta_val", kind, 0),
        EpisodeSampler(pack, whole(pack), "meta_train", dataclasses.replace(kind, n_shot=2), 0),
        EpisodeSampler(pack, whole(pack), "meta_train", dataclasses.replace(kind, n_query=2), 0),
        EpisodeSampler(pack, whole(pack), "meta_train", dataclasses.replace(kind, n_way=3), 0),
        EpisodeSampler(pack, whole(pack), "meta_train", dataclasses.replace(kind, query_prior="natural"), 0),
    ]
    assert same(first, EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, 600)) == 1
    for other in others:
        assert same(first, other.sample(0, 600)) < 0.03


def test_no_two_episodes_of_a_stream_are_the_same(pack):
    batch = drawn(pack, 3000, n_way=3, n_query=2)
    assert len({tuple(row) for row in np.concatenate(sides(batch), 1).tolist()}) == 3000


# Even draws: tested on one draw per episode, so that the draws are independent


def even(values, n, least=1e-3):
    counts = np.bincount(np.asarray(values), minlength=n)
    return len(counts) == n and stats.chisquare(counts).pvalue > least


@pytest.mark.parametrize("regime", ["P", "D", "C"])
def test_classes_subjects_and_clips_are_drawn_evenly(pack, regime):
    kind = EpisodeConfig(regime=regime, n_way=3, n_shot=2, n_query=2)
    batch = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, EVERY)
    subject = codes(pack, "subject")
    for way in range(3):
        assert even(batch.classes[:, way], 4)
    for clips in (batch.support[:, 0, 0], batch.support[:, 2, 1], batch.query[:, 0], batch.query[:, -1]):
        assert even(subject[clips], 16)
        assert even(clips, len(pack.clips))


def test_pairs_of_classes_come_in_every_order_equally_often(pack):
    batch = drawn(pack, EVERY, n_way=2, n_query=1)
    pairs = batch.classes[:, 0] * 4 + batch.classes[:, 1]
    counts = np.bincount(pairs, minlength=16).reshape(4, 4)
    assert (np.diag(counts) == 0).all()
    assert stats.chisquare(counts[~np.eye(4, dtype=bool)]).pvalue > 1e-3


def test_a_domain_is_drawn_by_the_root_of_its_clips(tmp_path):
    small = [(s, g, "small", label) for s, g, _, label in people(n_subjects=4, per_label=2)]
    large = [(f"x{s}", f"x{g}", "large", label) for s, g, _, label in people(n_subjects=4, per_label=8)]
    pack = packed(tmp_path, small + large)
    batch = drawn(pack, EVERY, n_way=2, n_query=1)
    share = (pack.clips["domain"].to_numpy()[batch.support[:, 0, 0]] == "large").mean()
    assert share == pytest.approx(2 / 3, abs=5 * np.sqrt(2 / 9 / EVERY))


def test_one_division_of_people_holds_for_all_classes_and_varies_in_size(pack):
    kind = EpisodeConfig(n_way=4, n_shot=5, n_query=5)
    batch = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, 1000)
    subject = codes(pack, "subject")
    support, query = (subject[side] for side in sides(batch))
    sizes = np.array([(len(set(s)), len(set(q))) for s, q in zip(support, query, strict=True)])
    assert (sizes.sum(1) <= 4).all() and set(sizes[:, 0]) == {1, 2, 3}


# Nothing to learn from where a clip stands


def test_a_class_stands_in_every_place_equally_often(pack):
    batch = drawn(pack, EVERY, regime="C", n_way=4, n_query=1)
    places = batch.classes.argsort(1)
    for label in range(4):
        assert even(places[:, label], 4)


def test_a_learner_that_always_gives_the_same_answer_is_at_chance(pack):  # I-8
    for prior in ("balanced", "natural"):
        kind = EpisodeConfig(n_way=4, n_query=2, query_prior=prior)
        batch = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, EVERY)
        for answer in range(4):
            assert float((batch.query_label == answer).double().mean()) == pytest.approx(0.25, abs=0.01)


def test_a_learner_that_answers_by_the_global_label_is_at_chance(pack):
    batch = drawn(pack, EVERY, regime="C", n_way=4, n_query=2)
    answer = torch.from_numpy(pack.label_ids.copy())[batch.query]
    assert float((answer == batch.query_label).double().mean()) == pytest.approx(0.25, abs=0.015)


def by_place(batch):
    """Accuracy on every second episode of answering with what most often stood at the place in the others."""
    place = torch.nn.functional.one_hot(batch.query_label[::2], batch.n_way).sum(0).argmax(1)
    return float((batch.query_label[1::2] == place).double().mean())


@pytest.mark.parametrize("regime", ["P", "D"])
def test_a_learner_that_answers_by_the_place_of_a_natural_query_is_at_chance(pack, regime):
    kind = EpisodeConfig(regime=regime, n_way=4, n_query=2, query_prior="natural")
    assert by_place(EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, EVERY)) < 0.27


@pytest.mark.parametrize("regime", ["P", "D", "C"])
def test_a_learner_that_answers_by_the_place_of_a_balanced_query_is_at_chance(pack, regime):
    kind = EpisodeConfig(regime=regime, n_way=4, n_query=2)
    assert by_place(EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, EVERY)) < 0.27


def test_the_support_of_a_class_is_shuffled(pack):
    batch = drawn(pack, EVERY, n_way=2, n_shot=3, n_query=1)
    orders = batch.support[:, 0].argsort(1)
    names = {tuple(order) for order in orders.tolist()}
    counts = [int((orders == torch.tensor(name)).all(1).sum()) for name in names]
    assert len(names) == 6 and stats.chisquare(counts).pvalue > 1e-3


# The natural prior


@pytest.mark.parametrize("regime", ["P", "D"])
def test_natural_queries_come_in_the_proportions_of_the_clips(tmp_path, regime):
    copies = {"anger": 1, "calm": 2, "fear": 3, "joy": 6}
    rows = [row for row in people(per_label=1, n_groups=4) for _ in range(copies[row[3]])]
    pack = packed(tmp_path, [rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
    kind = EpisodeConfig(regime=regime, n_way=4, n_query=2, query_prior="natural")
    batch = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, 4000)
    labels = pack.label_ids[batch.query.numpy()]
    np.testing.assert_allclose(np.bincount(labels.ravel()) / labels.size, np.array([1, 2, 3, 6]) / 12, atol=0.01)
    assert len({tuple(row) for row in np.sort(labels, 1).tolist()}) > 10, "the numbers of each class vary"


def test_natural_queries_hold_only_classes_of_the_episode(pack):
    kind = EpisodeConfig(n_way=2, n_query=2, query_prior="natural")
    batch = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(0, 500)
    labels = torch.from_numpy(pack.label_ids.copy())[batch.query]
    assert (labels[..., None] == batch.classes[:, None]).any(2).all()


# Episode lists


@pytest.fixture
def saved(pack, tmp_path):
    kind = EpisodeConfig(n_way=3, n_shot=2, n_query=2)
    batch = EpisodeSampler(pack, whole(pack), "meta_train", kind, 0).sample(5, 20)
    return save_episodes(tmp_path / "episodes.json", batch, pack, kind), batch


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_an_episode_list_comes_back_as_it_was(pack, saved):
    path, batch = saved
    again = load_episodes(path, pack)
    for name in ("ids", "classes", "support", "query", "query_label"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
        assert getattr(again, name).dtype == torch.int64
    assert [child.name for child in path.parent.iterdir()] == ["episodes.json"], "nothing is left beside it"


def test_an_episode_list_names_clips_and_labels_and_the_kind_of_episode(pack, saved):
    path, batch = saved
    content = json.loads(path.read_text())
    assert content["support"][0][0][0] == pack.clips["clip_id"].iloc[int(batch.support[0, 0, 0])]
    assert content["classes"][0] == [pack.labels[c] for c in batch.classes[0]]
    assert content["episode"] == dataclasses.asdict(EpisodeConfig(n_way=3, n_shot=2, n_query=2))


def test_an_episode_list_of_another_pack_is_refused(uneven, pack, saved):
    with pytest.raises(EpisodeError, match=f"drawn from pack {pack.digest}; expected pack {uneven.digest}"):
        load_episodes(saved[0], uneven)


def test_an_episode_list_with_an_unknown_clip_or_label_is_refused_by_name(pack, saved):
    content = json.loads(saved[0].read_text())
    query, classes = content["query"], content["classes"]
    query[3][1], classes[2][0] = "clip-x", "envy"
    with pytest.raises(EpisodeError, match="unknown name 'clip-x'; expected a clip"):
        load_episodes(changed(saved[0], query=query), pack)
    with pytest.raises(EpisodeError, match="unknown name 'envy'; expected a clip or label"):
        load_episodes(changed(saved[0], classes=classes), pack)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not readable as JSON"),
        ("", "not readable as JSON"),
        ("[1, 2]", "not readable as JSON"),
        ("{}", "format None version None; expected stf2m-episodes version 1"),
        ('{"format": "stf2m-episodes", "version": 2}', "version 2; expected stf2m-episodes version 1"),
    ],
)
def test_what_is_no_episode_list_is_refused(pack, tmp_path, text, expected):
    path = tmp_path / "episodes.json"
    path.write_text(text)
    with pytest.raises(EpisodeError, match=expected):
        load_episodes(path, pack)


@pytest.mark.parametrize("own, expected", [(["yes", "no"], "not numbers"), ([True], r"own of shape \(1,\); expected")])
def test_an_episode_list_that_says_badly_whose_clips_they_are_is_refused(pack, saved, own, expected):
    with pytest.raises(EpisodeError, match=expected):
        load_episodes(changed(saved[0], own=own), pack)


@pytest.mark.parametrize(
    "changes",
    [
        {"query": None},
        {"query_label": [[0]]},
        {"query_label": [[9] * 6] * 20},
        {"support": [["clip-1"], []]},
        {"ids": ["a"]},
    ],
)
def test_a_malformed_episode_list_is_refused(pack, saved, changes):
    content = json.loads(saved[0].read_text()) | changes
    saved[0].write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(EpisodeError, match="episodes.json"):
        load_episodes(saved[0], pack)
