"""Cases for the figures of the teaching notebooks, as `test_figures.CASES` holds them."""

import numpy as np

from stf2m_core import figures

_LONG = tuple(f"a reader with a very long name that says everything, number {number}" for number in range(6))


def _random(*shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def _rows(names, groups=None):
    rows = [{"reader": name, "mean": 0.3 + 0.1 * i, "ci95": 0.02} for i, name in enumerate(names)]
    if groups:
        return [row | {"group": group} for group in groups for row in rows]
    return [*rows[:-1], rows[-1] | {"ci95": None}]


def _share(*shape):
    values = _random(*shape) ** 4
    return values / values.sum(-1, keepdims=True)


def _sets(names):
    place = np.linspace(-4, 4, 41)
    return place, {name: np.exp(-(place**2) * (i + 1)) for i, name in enumerate(names)}


FACE = {"eye r": (-1.0, 1.0), "eye l": (1.0, 1.0), "nose": (0.0, 0.0)}
KINDS = {"tsk": "product of memberships", "htsk": "mean per feature", "calibrated": "calibrated"}
SPREAD = _random(2, 3, 3), [[True, True, True], [True, True, False]]
ONE_CLIP = [[3, 0, 3]], [-1], ("calm", "happy", "sad")
ENTROPY = {kind: _random(4) for kind in KINDS}
PATHS = {"one": {"a": _random(6, 9), "b": _random(6, 9)}, "five": {"a": _random(6, 9), "b": _random(6, 9)}}

CASES = {
    "readers": lambda: (figures.readers, (_rows(("alone", "together")),), {"lines": {"guess": 0.2, "ceiling": 0.75}}),
    "readers, long names": lambda: (figures.readers, (_rows(_LONG),), {"lines": {_LONG[0]: 0.2}}),
    "readers, groups": lambda: (figures.readers, (_rows(_LONG[:3], ("first group", "second", "third")),),
                                {"group": "group"}),
    "same_frames": lambda: (figures.same_frames, (_random(2, 20), np.cumsum(_random(2, 20), 1), ("slow", "fast")), {}),
    "same_frames, long names": lambda: (figures.same_frames, (_random(4, 3), _random(4, 3), _LONG[:4]), {}),
    "gaps": lambda: (figures.gaps, (_random(40), _random(40) > 0.3, _random(40), _random(2, 40)), {}),
    "gaps, nothing observed": lambda: (figures.gaps, (_random(5), np.zeros(5, bool), _random(5), _random(2, 5)), {}),
    "spread": lambda: (figures.spread, (FACE, [(0, 2), (1, 2)], *SPREAD), {}),
    "spread, one hop": lambda: (figures.spread, (FACE, [], np.ones((1, 1, 3)), np.ones((1, 3), bool)), {}),
    "weighted_graphs": lambda: (figures.weighted_graphs, (FACE, [_share(3, 3)], ("learned",)), {"even": 1 / 3}),
    "weighted_graphs, two": lambda: (figures.weighted_graphs, (FACE, [_share(3, 3)] * 2, _LONG[:2]), {}),
    "fuzzy_sets": lambda: (figures.fuzzy_sets, _sets(("Gaussian", "bell")), {}),
    "fuzzy_sets, long names": lambda: (figures.fuzzy_sets, _sets(_LONG), {}),
    "rule_shapes": lambda: (figures.rule_shapes, (_random(30, 2), np.arange(30) % 3, {"straight": _random(3, 2)},
                                                  {"straight": np.tile(np.eye(2) / 9, (3, 1, 1))}), {}),
    "saturation": lambda: (figures.saturation, ((1, 4, 16, 64), ENTROPY, ENTROPY, 8, KINDS), {}),
    "firing_side_by_side": lambda: (figures.firing_side_by_side, ({kind: _share(40, 8) for kind in KINDS}, KINDS,
                                                                  "16 features"), {}),
    "firing_side_by_side, one": lambda: (figures.firing_side_by_side, ({"tsk": _share(1, 24)}, KINDS, "x" * 200), {}),
    "inner_paths": lambda: (figures.inner_paths, (PATHS,), {"metric": "accuracy", "chance": 0.2}),
    "inner_paths, one episode": lambda: (figures.inner_paths, ({"one": {_LONG[0]: _random(12, 1)}},), {"metric": "e"}),
    "one_wave": lambda: (figures.one_wave, (np.linspace(-5, 5, 20), _random(20), _random(10, 2),
                                            {name: _random(2, 20) for name in _LONG[:3]}), {}),
    "vote_bars": lambda: (figures.vote_bars, (np.arange(18).reshape(6, 3), [2] * 5 + [-1], ("calm", "happy", "sad")),
                          {}),
    "vote_bars, one clip, a tie": lambda: (figures.vote_bars, ONE_CLIP, {}),
    "said_and_chosen": lambda: (figures.said_and_chosen, ({"soft labels": (_random(400), _random(400, seed=1)),
                                                           "hard labels": (_random(400), _random(400))},), {}),
    "clip_segments": lambda: (figures.clip_segments, (np.repeat([0, 2, -1, 1], 10), {"a model": _share(40, 3), _LONG[0]:
                              _share(40, 3)}, ("calm", "happy", "sad")), {"hop_s": 0.25, "starts_s": (1.0, 4.0),
                                                                        "title": _LONG[0] * 3}),
    "clip_segments, many emotions": lambda: (figures.clip_segments, (np.arange(48) // 2, {"a": _share(48, 24)}, [
        f"{name} {number}" for number in range(4) for name in _LONG]), {"hop_s": 0.5}),
    "clip_segments, one step": lambda: (figures.clip_segments, (np.array([-1]), {"a": np.full((1, 2), 0.5)}, _LONG[:2]),
                                        {"hop_s": 0.1}),
    "said_and_chosen, few": lambda: (figures.said_and_chosen, ({"soft labels": ([0.1, 0.9], [0, 1])},), {}),
}  # fmt: skip
"""Name of a figure, and after a comma what is special -> (figure, arguments, settings)."""
