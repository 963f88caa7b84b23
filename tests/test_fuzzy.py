"""Fuzzy rules against slow loops and full matrices in float64; I-n cites the method's list of invariants."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from stf2m_core.config import FuzzyConfig
from stf2m_core.errors import ConfigError
from stf2m_core.inspection import covariances
from stf2m_core.model.antecedents import (
    RuleUse,
    firing_entropy,
    firing_strength,
    k_means,
    membership,
    squared_distance,
)
from stf2m_core.model.fuzzy import FuzzyRules, PlainNetwork, rule_labels, rule_labels_left_out

CONFIG = FuzzyConfig(n_rules=5, n_features=4, rank=2, n_consequents=3)
EMBEDDING, LABELS = 6, 7


def rng(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def share(*shape, seed=0):
    return torch.softmax(2 * normal(*shape, seed=seed), -1)


def rules_of(config=CONFIG, seed=0, noise=0.3, dtype=torch.float64):
    """A layer whose weights are all away from the special values of its start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rules = FuzzyRules(EMBEDDING, LABELS, config)
    with torch.no_grad():
        for number, weight in enumerate(rules.parameters()):
            weight.add_(noise * normal(*weight.shape, seed=1000 * seed + number))
    return rules.to(dtype)


def fire(rules, embedding, **changes):
    """The layer on (episode, clip, embedding) with its own consequents and no shift."""
    n_episodes = len(embedding)
    facts = {
        "disagreement": normal(*embedding.shape[:2], seed=8).abs(),
        "consequent": rules.consequent.expand(n_episodes, -1, -1),
        "shift": torch.zeros_like(rules.center).expand(n_episodes, -1, -1),
    }
    return rules(embedding, **(facts | changes))


# Distances, memberships


def test_the_distance_is_that_of_the_full_precision_matrix():  # I-17
    x, c, lam, u = normal(2, 6, 4), normal(2, 5, 4, seed=1), normal(5, 4, seed=2), normal(5, 4, 3, seed=3)
    ours = squared_distance(x, c, lam, u)
    for episode in range(2):
        for clip in range(6):
            for rule in range(5):
                d = x[episode, clip] - c[episode, rule]
                full = torch.diag(torch.exp(2 * lam[rule])) + u[rule] @ u[rule].T
                assert float(ours[episode, clip, rule]) == pytest.approx(float(d @ full @ d), abs=1e-11)


def test_centres_shared_by_all_episodes_may_have_an_episode_axis_of_one():
    x, c, lam, u = normal(3, 6, 4), normal(1, 5, 4, seed=1), normal(5, 4, seed=2), normal(5, 4, 3, seed=3)
    torch.testing.assert_close(squared_distance(x, c, lam, u), squared_distance(x, c.expand(3, -1, -1), lam, u))


@pytest.mark.parametrize("offset", [100.0, 1000.0])
def test_an_offset_of_the_features_does_not_cost_the_distance_its_digits_in_float32(offset):  # trap 10
    x = (offset + normal(1, 200, 16)).float()
    c = (offset + normal(1, 24, 16, seed=1)).float()
    lam, u = 0.3 * normal(24, 16, seed=2).float(), 0.2 * normal(24, 16, 4, seed=3).float()
    exact = squared_distance(x.double(), c.double(), lam.double(), u.double())
    assert 20 < float(exact.mean()) < 100
    assert float((squared_distance(x, c, lam, u).double() - exact).abs().max()) < 1e-3
    full = torch.diag_embed(torch.exp(2 * lam)) + u @ u.transpose(1, 2)
    expanded = (torch.einsum("bf,rfg,bg->br", x[0], full, x[0]) - 2 * torch.einsum("bf,rfg,rg->br", x[0], full, c[0])
                + torch.einsum("rf,rfg,rg->r", c[0], full, c[0]))  # fmt: skip
    assert float((expanded.double() - exact[0]).abs().max()) > 1e-2  # what this test would catch


def test_membership_is_one_at_the_centre_and_between_zero_and_one_elsewhere():  # I-16
    c, lam, u = normal(1, 5, 4, seed=1), normal(5, 4, seed=2), normal(5, 4, 3, seed=3)
    at_centres = membership(squared_distance(c, c, lam, u))[0]
    assert torch.equal(at_centres.diagonal(), torch.ones(5, dtype=torch.float64))
    typical = membership(squared_distance(normal(1, 500, 4), c, lam, u))
    assert (typical > 0).all() and (typical <= 1).all() and typical.std() > 0


def test_an_axis_parallel_rule_is_the_product_of_one_dimensional_gaussian_memberships():  # I-17
    x, c, lam = normal(1, 6, 4), normal(1, 5, 4, seed=1), 0.5 * normal(5, 4, seed=2)
    ours = membership(squared_distance(x, c, lam, torch.zeros(5, 4, 0, dtype=torch.float64)))
    width = torch.exp(-lam)
    ordinary = torch.exp(-0.5 * ((x[:, :, None] - c[:, None]) / width) ** 2).prod(-1)
    torch.testing.assert_close(ours, ordinary, rtol=1e-12, atol=0)


def test_a_rotated_rule_is_the_product_of_one_dimensional_memberships_along_its_own_axes():  # I-17
    x, c, lam, u = normal(1, 6, 4), normal(1, 5, 4, seed=1), 0.5 * normal(5, 4, seed=2), normal(5, 4, 3, seed=3)
    ours = membership(squared_distance(x, c, lam, u))
    for rule in range(5):
        full = torch.diag(torch.exp(2 * lam[rule])) + u[rule] @ u[rule].T
        w, q = torch.linalg.eigh(full)
        along = torch.exp(-0.5 * w * ((x[0] - c[0, rule]) @ q) ** 2).prod(-1)
        torch.testing.assert_close(ours[0, :, rule], along, rtol=1e-10, atol=0)


def low_rank(precision):
    """Lambda and U of a full precision: a small diagonal, the rest in a factor of full rank."""
    lam = torch.full(precision.shape[:2], -3.0, dtype=torch.float64)
    return lam, torch.linalg.cholesky(precision - torch.diag_embed(torch.exp(2 * lam)))


def test_rotating_features_centres_and_precisions_together_changes_nothing_but_needs_the_full_form():  # I-18
    x, c, root = normal(1, 6, 4), normal(1, 5, 4, seed=1), normal(5, 4, 4, seed=2)
    precision = root @ root.transpose(1, 2) + 0.1 * torch.eye(4)
    turn = torch.linalg.qr(normal(4, 4, seed=3)).Q
    plain = squared_distance(x, c, *low_rank(precision))
    turned = squared_distance(x @ turn.T, c @ turn.T, *low_rank(turn @ precision @ turn.T))
    torch.testing.assert_close(turned, plain, rtol=1e-9, atol=1e-9)
    lam, none = 0.5 * normal(5, 4, seed=2), torch.zeros(5, 4, 0, dtype=torch.float64)
    change = squared_distance(x @ turn.T, c @ turn.T, lam, none) - squared_distance(x, c, lam, none)
    assert change.abs().max() > 0.1


def test_precisions_are_positive_definite_whatever_the_weights():  # I-22
    rules = rules_of(noise=8.0)
    assert rules.log_precision.abs().max() > 8
    lowest = torch.linalg.eigvalsh(rules.precision())[:, 0]
    assert (lowest > math.exp(-8) * 0.99).all()
    assert (torch.linalg.eigvalsh(rules_of(FuzzyConfig(n_rules=5, n_features=4, rank=0)).precision()) > 0).all()


@pytest.mark.parametrize("noise", [0.3, 8.0])
def test_the_precision_that_is_shown_is_the_one_that_measures_distances(noise):
    rules, x = rules_of(noise=noise), normal(1, 6, 4)
    d = x[0, :, None] - rules.center
    shown = torch.einsum("brf,rfg,brg->br", d, rules.precision(), d)
    measured = squared_distance(x, rules.center[None], rules.log_precision, rules.factor)[0]
    torch.testing.assert_close(measured, shown, rtol=1e-10, atol=1e-10)


def test_covariances_are_those_of_the_closed_form_and_their_diagonal_the_squared_axis_widths():
    rules = rules_of()
    shown = torch.from_numpy(covariances(SimpleNamespace(rules=rules)))
    u, inner = rules.factor.detach(), torch.diag_embed(torch.exp(-2 * rules.log_precision.detach()))
    small = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + u.transpose(1, 2) @ inner @ u)
    torch.testing.assert_close(shown, inner - inner @ u @ small @ u.transpose(1, 2) @ inner)
    torch.testing.assert_close(shown @ rules.precision().detach(), torch.eye(4, dtype=torch.float64).expand(5, -1, -1))


# Firing


@pytest.mark.parametrize("kept", [None, torch.tensor([[[True, False, True, True, False]]])])
def test_firing_is_never_negative_and_sums_to_one_over_the_rules_that_are_kept(kept):  # I-16, I-23
    firing = firing_strength(10 * normal(2, 6, 5).float() ** 2, torch.tensor(1.0), 4, kept)
    assert (firing >= 0).all()
    torch.testing.assert_close(firing.sum(-1), torch.ones(2, 6), rtol=0, atol=1e-6)
    if kept is not None:
        assert (firing[..., [1, 4]] == 0).all() and (firing[..., [0, 2, 3]] > 0).any()


def test_dropping_rules_leaves_the_proportions_of_the_others():  # I-23
    distance, scale = normal(2, 6, 5) ** 2, torch.tensor(0.3).double()
    kept = torch.tensor([[[True, False, True, True, False]], [[True, True, False, False, False]]])
    whole, some = (firing_strength(distance, scale, 4, k) for k in (None, kept))
    torch.testing.assert_close(some, whole * kept / (whole * kept).sum(-1, keepdim=True))


def test_firing_is_the_softmax_of_scaled_distances_per_feature():
    distance = normal(2, 6, 5) ** 2
    slow = torch.exp(-distance * math.exp(0.7) / (2 * 4))
    torch.testing.assert_close(firing_strength(distance, torch.tensor(0.7).double(), 4),
                               slow / slow.sum(-1, keepdim=True))  # fmt: skip


@pytest.mark.parametrize(("log_scale", "clamped"), [(-9.0, -3.0), (9.0, 5.0)])
def test_the_scale_is_kept_between_its_bounds(log_scale, clamped):
    distance = normal(2, 6, 5) ** 2
    assert torch.equal(*(firing_strength(distance, torch.tensor(s), 4) for s in (log_scale, clamped)))


def test_adding_a_constant_to_all_distances_of_a_clip_leaves_its_firing():  # I-19
    distance, scale = normal(2, 6, 5) ** 2, torch.tensor(0.5).double()
    moved = distance + 50 * normal(2, 6, 1, seed=1) ** 2
    torch.testing.assert_close(firing_strength(moved, scale, 4), firing_strength(distance, scale, 4))


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_features_of_any_size_give_no_nan_and_finite_gradients(size):  # I-19
    x = (size * normal(1, 20, 16)).float().requires_grad_()
    c, lam = normal(1, 24, 16, seed=1).float(), (3 * normal(24, 16, seed=2)).float().requires_grad_()
    u, scale = normal(24, 16, 4, seed=3).float(), torch.tensor(5.0, requires_grad=True)
    firing = firing_strength(squared_distance(x, c, lam, u), scale, 16)
    (firing_entropy(firing).sum() + (firing * normal(24, seed=4).float()).sum()).backward()
    assert torch.isfinite(firing).all()
    assert all(torch.isfinite(t.grad).all() for t in (x, lam, scale))


SATURATION = {2: (0.89, 0.96), 8: (0.53, 0.975), 16: (0.32, 0.985), 32: (0.20, 0.993), 64: (0.15, 0.997),
              128: (0.09, 0.998)}  # fmt: skip
"""Features -> mean normalised entropy with summed and with averaged distances: the method's table, 24 rules."""


def test_firing_does_not_saturate_with_the_number_of_features_where_plain_sums_would():  # I-19
    found = {}
    for n in SATURATION:
        distance = squared_distance(normal(1, 400, n, seed=n), normal(1, 24, n, seed=n + 1),
                                    torch.zeros(24, n).double(), torch.zeros(24, n, 0).double())  # fmt: skip
        zero = torch.zeros(()).double()
        found[n] = [float(firing_entropy(firing_strength(distance, zero, k)).mean()) for k in (1, n)]
    sums, means = zip(*found.values(), strict=True)
    assert list(means) == sorted(means) and list(sums) == sorted(sums, reverse=True)
    for n, (expected_sum, expected_mean) in SATURATION.items():
        assert found[n][0] == pytest.approx(expected_sum, abs=0.06)
        assert found[n][1] == pytest.approx(expected_mean, abs=0.015)


def test_entropy_is_one_for_even_firing_zero_for_one_rule_and_half_for_the_root_of_the_rules():
    firing = torch.zeros(3, 16)
    firing[0], firing[1, 3], firing[2, :4] = 1 / 16, 1, 1 / 4
    torch.testing.assert_close(firing_entropy(firing), torch.tensor([1.0, 0.0, 0.5]), rtol=0, atol=1e-6)


def test_a_far_clip_is_typical_of_no_rule_although_one_rule_may_claim_it():  # I-20
    rules = rules_of()
    direction = torch.nn.functional.normalize(normal(4, seed=5), dim=0)
    x = torch.stack([rules.center[0].detach(), *(scale * direction for scale in (10.0, 100.0, 1e3))])[None]
    distance = squared_distance(x, rules.center[None], rules.log_precision, rules.factor)[0].detach()
    best = membership(distance).amax(1)
    assert best[0] == 1 and (best[1:].diff() <= 0).all() and best[-1] < 1e-30
    claimed = firing_strength(distance[None], torch.tensor(0.0).double(), 4)[0].amax(1)
    assert claimed[-1] > 0.99


def test_calibration_reaches_the_wanted_entropy():
    for wanted in (0.3, 0.5, 0.7, 0.9):
        config = FuzzyConfig(n_rules=12, n_features=8, entropy=wanted)
        rules, features = rules_of(config, dtype=torch.float32), normal(300, 8, dtype=torch.float32)
        rules.calibrate(features)
        distance = squared_distance(features[None], rules.center[None], rules.log_precision, rules.factor)
        reached = firing_entropy(firing_strength(distance, rules.log_scale, 8)).mean()
        assert reached.item() == pytest.approx(wanted, abs=1e-3)


def test_calibration_stops_at_a_bound_where_the_wanted_entropy_cannot_be_reached():
    rules = rules_of(FuzzyConfig(n_rules=4, n_features=4, entropy=0.5))
    with torch.no_grad():
        rules.center.zero_()
        rules.log_precision.zero_(), rules.factor.zero_()
    rules.calibrate(normal(50, 4))
    assert rules.log_scale.item() == pytest.approx(5.0, abs=1e-6)


# Label distributions


def facts_of(n_clips=7, n_rules=5, n_way=3):
    weight = torch.rand(2, n_clips, generator=rng(4), dtype=torch.float64)
    weight[0, n_clips // 2] = 0
    return share(2, n_clips, n_rules), share(2, n_clips, n_way, seed=1), weight, share(2, n_rules, n_way, seed=2)


@pytest.mark.parametrize("prior_weight", [1.0, 0.2])
def test_rule_labels_are_those_of_a_slow_loop(prior_weight):
    firing, target, weight, prior = facts_of()
    ours = rule_labels(firing, target, weight, prior, prior_weight)
    for e in range(2):
        for r in range(5):
            for w in range(3):
                votes = sum(float(weight[e, i] * firing[e, i, r] * target[e, i, w]) for i in range(7))
                mass = sum(float(weight[e, i] * firing[e, i, r]) for i in range(7))
                expected = (votes + prior_weight * float(prior[e, r, w])) / (mass + prior_weight)
                assert float(ours[e, r, w]) == pytest.approx(expected, abs=1e-12)


def test_label_distributions_of_rules_and_clips_sum_to_one():  # I-16
    facts = facts_of()
    labels, left_out = rule_labels(*facts, 1.0), rule_labels_left_out(*facts, 1.0)
    answers = torch.einsum("ebr,erw->ebw", share(2, 9, 5, seed=6), labels)
    for distribution in (labels, left_out, answers):
        assert (distribution > 0).all()
        torch.testing.assert_close(distribution.sum(-1), torch.ones(distribution.shape[:-1]).double())


def test_labels_without_a_clip_are_those_computed_from_the_other_clips():  # I-25
    firing, target, weight, prior = facts_of()
    ours = rule_labels_left_out(firing, target, weight, prior, 1.0)
    assert ours.shape == (2, 7, 5, 3)
    for clip in range(7):
        rest = [i for i in range(7) if i != clip]
        again = rule_labels(firing[:, rest], target[:, rest], weight[:, rest], prior, 1.0)
        torch.testing.assert_close(ours[:, clip], again, rtol=0, atol=1e-12)


def test_labels_without_the_only_clip_are_the_prior_even_in_float32():  # I-25
    firing, target, weight, prior = (t.float() for t in facts_of(n_clips=1))
    left_out = rule_labels_left_out(firing, target, weight, prior, 1.0)[:, 0]
    torch.testing.assert_close(left_out, prior, rtol=0, atol=1e-6)


def test_label_distributions_follow_a_renaming_of_the_classes():  # I-31
    firing, target, weight, prior = facts_of()
    order = [2, 0, 1]
    for function in (rule_labels, rule_labels_left_out):
        renamed = function(firing, target[..., order], weight, prior[..., order], 1.0)
        torch.testing.assert_close(renamed, function(firing, target, weight, prior, 1.0)[..., order])


def test_the_prior_is_what_the_rules_have_learned_of_known_classes_and_even_if_one_is_new():
    rules = rules_of()
    known = torch.tensor([True, True, True, False, True, True, True])
    classes = torch.tensor([[4, 0, 2], [1, 3, 5]])
    prior = rules.prior(classes, known)
    score = torch.exp(rules.label_score[:, [4, 0, 2]])
    torch.testing.assert_close(prior[0], score / score.sum(1, keepdim=True))
    torch.testing.assert_close(prior[1], torch.full((5, 3), 1 / 3).double())


# The layer


def test_the_layer_is_that_of_a_slow_loop_clip_by_clip():
    rules, z = rules_of(), normal(2, 6, EMBEDDING)
    disagreement, consequent, shift = normal(2, 6, seed=8).abs(), normal(2, 5, 3, seed=9), normal(2, 5, 4, seed=10)
    said = rules(z, disagreement, consequent, shift)
    for e in range(2):
        for b in range(6):
            x = rules.reduce.weight @ z[e, b] + rules.reduce.bias
            x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5) * rules.norm.weight + rules.norm.bias
            d = x - rules.center - shift[e]
            m = torch.stack([d[r] @ rules.precision()[r] @ d[r] for r in range(5)])
            phi = torch.softmax(-m * torch.exp(rules.log_scale) / (2 * 4), 0)
            entropy = -(phi * phi.log()).sum() / math.log(5)
            typicality = membership(m).amax().log() / 4
            extra = torch.stack([entropy, typicality.clamp(min=-10), disagreement[e, b]])
            y = z[e, b] + rules.enrich.weight @ torch.cat([phi @ consequent[e], extra])
            y = (y - y.mean()) / torch.sqrt(y.var(unbiased=False) + 1e-5) * rules.out.weight + rules.out.bias
            for ours, slow in ((said.firing, phi), (said.entropy, entropy), (said.typicality, typicality),
                               (said.embedding, y)):  # fmt: skip
                torch.testing.assert_close(ours[e, b], slow, rtol=0, atol=1e-9)


def test_permuting_the_rules_with_their_consequents_permutes_firing_and_leaves_every_answer():  # I-21
    rules, z, order = rules_of(), normal(2, 6, EMBEDDING), torch.tensor([3, 0, 4, 1, 2])
    per_rule = ("center", "log_precision", "factor", "consequent", "label_score")
    other = FuzzyRules(EMBEDDING, LABELS, CONFIG).double()
    other.load_state_dict({n: t[order] if n in per_rule else t for n, t in rules.state_dict().items()})
    shift = normal(2, 5, 4, seed=10)
    said, permuted = fire(rules, z, shift=shift), fire(other, z, shift=shift[:, order])
    torch.testing.assert_close(permuted.firing, said.firing[..., order])
    for name in ("entropy", "typicality", "embedding"):
        torch.testing.assert_close(getattr(permuted, name), getattr(said, name))
    target, weight = share(2, 6, 3, seed=1), torch.ones(2, 6).double()
    classes, known = torch.tensor([[4, 0, 2], [1, 3, 5]]), torch.ones(LABELS, dtype=torch.bool)
    mu = [torch.einsum("ebr,erw->ebw", s.firing, rule_labels(s.firing, target, weight, r.prior(classes, known), 1.0))
          for r, s in ((rules, said), (other, permuted))]  # fmt: skip
    torch.testing.assert_close(*mu)
    torch.testing.assert_close(other.overlap(), rules.overlap())


def test_one_dropped_mask_holds_for_every_clip_of_its_episode():  # I-23
    rules, z = rules_of(), normal(2, 6, EMBEDDING)
    kept = torch.tensor([[[True, False, True, True, False]], [[False, True, True, False, True]]])
    firing = fire(rules, z, kept=kept).firing
    assert torch.equal(firing > 0, kept.expand(-1, 6, -1))
    torch.testing.assert_close(firing.sum(-1), torch.ones(2, 6).double())
    assert (fire(rules, z).firing > 0).all()


def test_the_layer_has_right_first_and_second_derivatives_in_its_fast_weights():
    rules, z = rules_of(), normal(1, 3, EMBEDDING)
    fast = (normal(1, 5, 3, seed=9).requires_grad_(), 0.3 * normal(1, 5, 4, seed=10).requires_grad_())

    def layer(consequent, shift):
        said = fire(rules, z, consequent=consequent, shift=shift)
        return said.embedding, said.firing, said.entropy

    assert gradcheck(layer, fast)
    assert gradgradcheck(layer, fast)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_layer_at_its_start_gives_finite_gradients_for_equal_clips_and_for_a_clip_at_a_centre(rank):  # I-15
    rules = rules_of(FuzzyConfig(rank=rank), noise=0.0, dtype=torch.float32)
    z = torch.zeros(1, 4, EMBEDDING)
    with torch.no_grad():
        rules.center[0] = rules.features(z)[0, 0]
    said = fire(rules, z, disagreement=torch.zeros(1, 4))
    loss = (said.embedding * normal(EMBEDDING, seed=1, dtype=torch.float32)).sum() + said.typicality.sum()
    first = torch.autograd.grad(loss, list(rules.parameters()), create_graph=True, allow_unused=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first if g is not None), rules.center)
    assert all(torch.isfinite(g).all() for g in (*first, *second) if g is not None)


def test_a_half_precision_embedding_is_fired_on_in_the_layer_s_own_precision():
    rules = rules_of(dtype=torch.float32)
    assert rules.features(normal(1, 3, EMBEDDING, dtype=torch.bfloat16)).dtype == torch.float32


# Regularisers


def test_balance_is_zero_if_and_only_if_the_mean_use_of_the_rules_is_even():  # I-26
    rules = rules_of()
    one_each = torch.eye(5)[None].double()
    assert float(rules.balance(one_each)) == pytest.approx(0, abs=1e-15)
    assert float(rules.balance(torch.full((2, 3, 5), 0.2).double())) == pytest.approx(0, abs=1e-15)
    assert float(rules.balance(one_each[:, :4])) == pytest.approx(4 * 0.05**2 + 0.2**2)
    firing = share(2, 6, 5)
    mean = firing.flatten(0, 1).mean(0)
    assert float(rules.balance(firing)) == pytest.approx(float(((mean - 0.2) ** 2).sum())) and rules.balance(firing) > 0


def test_balance_is_over_the_whole_meta_batch_and_not_per_episode():  # I-26
    firing = torch.eye(5)[:, None].double()
    assert float(rules_of().balance(firing)) == pytest.approx(0, abs=1e-15)


def test_overlap_is_the_mean_over_pairs_of_a_slow_loop():
    rules, total = rules_of(), 0.0
    precision = rules.precision().detach()
    for r in range(5):
        for s in range(r):
            d = (rules.center[r] - rules.center[s]).detach()
            distance = float(d @ (precision[r] + precision[s]) @ d) * math.exp(rules.log_scale.item()) / 4
            total += math.exp(-distance / 4)
    assert rules.overlap().item() == pytest.approx(2 * total / (5 * 4), abs=1e-12)


def test_overlap_lies_between_zero_and_one_and_reaches_both_ends():
    rules = rules_of()
    assert 0 < rules.overlap().item() < 1
    with torch.no_grad():
        rules.center.mul_(1e3)
        assert rules.overlap().item() == pytest.approx(0, abs=1e-12)
        rules.center.zero_()
    assert rules.overlap().item() == pytest.approx(1, abs=1e-12)


# Clusters and the start of the rules


def blobs(n_blobs=6, size=30, n_features=4, spread=0.05, offset=0.0, seed=0):
    middle = offset + 5 * torch.linalg.qr(normal(8, 8, seed=seed)).Q[:n_blobs, :n_features].repeat(1, 1)
    owner = torch.arange(n_blobs).repeat_interleave(size)
    points = middle[owner] + spread * normal(n_blobs * size, n_features, seed=seed + 1)
    mixed = torch.randperm(len(points), generator=rng(seed + 2))
    return points[mixed].float(), owner[mixed], middle


@pytest.mark.parametrize("seed", range(8))
def test_separated_clusters_are_found(seed):
    points, owner, _ = blobs()
    centers, found = k_means(points, 6, rng(seed))
    for blob in range(6):
        mine = found[owner == blob]
        assert (mine == mine[0]).all()
        torch.testing.assert_close(centers[mine[0]], points[owner == blob].mean(0), rtol=0, atol=1e-5)
    assert len(found.unique()) == 6


def test_clusters_are_the_same_for_the_same_generator_and_leave_the_global_state_alone():
    points, before = normal(200, 5, dtype=torch.float32), torch.get_rng_state()
    first, again, other = (k_means(points, 10, rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n_points", [1, 3, 60])
@pytest.mark.parametrize("alike", [True, False])
def test_every_centre_is_finite_with_fewer_points_than_clusters_or_equal_points(n_points, alike):
    points = normal(n_points, 3, dtype=torch.float32)
    centers, owner = k_means(points[:1].expand(n_points, -1) if alike else points, 24, rng(0))
    assert centers.shape == (24, 3) and torch.isfinite(centers).all()
    assert owner.shape == (n_points,) and owner.min() >= 0 and owner.max() < 24


def test_every_point_belongs_to_its_nearest_centre_and_rounds_lower_the_distances():
    points = normal(300, 5, dtype=torch.float32)
    costs = []
    for rounds in (0, 1, 10):
        centers, owner = k_means(points, 8, rng(1), rounds)
        gap = ((points[:, None] - centers) ** 2).sum(-1)
        torch.testing.assert_close(gap.gather(1, owner[:, None])[:, 0], gap.amin(1))
        costs.append(float(gap.amin(1).sum()))
    assert costs[0] > costs[1] > costs[2]


def test_rules_are_placed_on_the_clusters_with_their_spread_and_the_wanted_entropy():
    config = FuzzyConfig(n_rules=6, n_features=4, rank=2, entropy=0.4)
    rules, (points, _, _) = rules_of(config, dtype=torch.float32), blobs(spread=1.0)
    before = {n: p.clone() for n, p in rules.named_parameters() if n not in ("center", "log_precision", "log_scale")}
    rules.place(points, rng(0))
    centers, found = k_means(points, 6, rng(0))
    assert torch.equal(rules.center, centers)
    everywhere = points.std(0)
    for rule in range(6):
        width = torch.maximum(points[found == rule].std(0), 0.2 * everywhere)
        torch.testing.assert_close(rules.log_precision[rule], -width.log())
    firing = firing_strength(squared_distance(points[None], rules.center[None], rules.log_precision, rules.factor),
                             rules.log_scale, 4)  # fmt: skip
    assert firing_entropy(firing).mean().item() == pytest.approx(0.4, abs=1e-3)
    assert all(torch.equal(dict(rules.named_parameters())[n], p) for n, p in before.items())


def test_the_spread_of_a_tight_rule_is_at_least_a_fifth_of_that_of_all_clips():
    config = FuzzyConfig(n_rules=6, n_features=4)
    rules, (points, _, _) = rules_of(config, dtype=torch.float32), blobs(spread=1e-3)
    rules.place(points, rng(0))
    torch.testing.assert_close(rules.log_precision, (-(0.2 * points.std(0)).log()).expand(6, -1))


def test_rules_placed_on_equal_clips_or_on_fewer_clips_than_rules_are_finite():
    for points in (torch.ones(40, 4), normal(3, 4, dtype=torch.float32)):
        rules = rules_of(FuzzyConfig(n_rules=24, n_features=4), dtype=torch.float32)
        rules.place(points, rng(0))
        assert all(torch.isfinite(p).all() for p in rules.parameters())
        assert torch.isfinite(fire(rules, normal(1, 5, EMBEDDING, dtype=torch.float32)).embedding).all()


def test_the_network_in_place_of_the_rules_has_as_many_weights_within_a_twentieth():
    n_weights = sum(p.numel() for p in FuzzyRules(64, 24, FuzzyConfig()).parameters())
    plain = PlainNetwork(64, n_weights)
    assert sum(p.numel() for p in plain.parameters()) == pytest.approx(n_weights, rel=0.05)
    z = normal(2, 3, 64, dtype=torch.float32)
    assert plain(z, torch.zeros(2, 3)).shape == z.shape
    assert not torch.equal(plain(z, torch.zeros(2, 3)), plain(z, torch.ones(2, 3)))


# Kinds: antecedents, firing, consequents

KINDS = {
    "diagonal": {"antecedent": "diagonal", "rank": 0}, "low-rank": {}, "full": {"antecedent": "full", "rank": 0},
    "bell": {"antecedent": "bell"}, "tsk": {"firing": "tsk"}, "htsk": {"firing": "htsk"},
    "first-order": {"consequents": "first-order", "n_directions": 2},
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS)


def kind_of(kind, **changes):
    return FuzzyConfig(**({"n_rules": 5, "n_features": 4, "rank": 2, "n_consequents": 3} | KINDS[kind] | changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"antecedent": "diagonal"}, "rank = 4 with diagonal antecedents; expected rank = 0"),
     ({"antecedent": "full", "rank": 1}, "rank = 1 with full antecedents; expected rank = 0"),
     ({"antecedent": "bell", "firing": "htsk"}, "firing = 'htsk' with bell antecedents; expected calibrated or tsk")],
)  # fmt: skip
def test_a_pair_of_kinds_that_makes_no_sense_is_refused_with_the_reason(settings, message):
    with pytest.raises(ConfigError, match=message):
        FuzzyConfig(**settings)


@each_kind
def test_every_kind_has_memberships_of_one_at_its_centres_and_firing_that_sums_to_one(kind):  # I-16
    rules, z = rules_of(kind_of(kind)), normal(2, 6, EMBEDDING)
    typical = membership(rules.distance(rules.features(z)))
    assert (typical > 0).all() and (typical <= 1).all()
    peak = membership(rules.distance(rules.center[None]))[0].diagonal()
    torch.testing.assert_close(peak, torch.ones(5).double(), rtol=0, atol=1e-3 if kind == "bell" else 1e-12)
    firing = fire(rules, z).firing
    assert (firing >= 0).all()
    torch.testing.assert_close(firing.sum(-1), torch.ones(2, 6).double())


@each_kind
def test_every_kind_flags_a_far_point_by_its_membership_though_firing_still_sums_to_one(kind):  # I-20
    rules = rules_of(kind_of(kind))
    far = rules.distance(1e4 * normal(1, 20, 4))
    assert membership(far).max() < 1e-2
    torch.testing.assert_close(rules.fire(far).sum(-1), torch.ones(1, 20).double())


@each_kind
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_every_kind_gives_finite_gradients_for_features_of_any_size_and_at_a_centre(kind, size):  # I-15, I-19
    rules, x = rules_of(kind_of(kind), dtype=torch.float32), size * normal(1, 20, 4, dtype=torch.float32)
    with torch.no_grad():
        x[0, 0] = rules.center[0]
    distance = rules.distance(x.requires_grad_())
    firing = rules.fire(distance)
    loss = firing_entropy(firing).sum() + (firing * normal(5, seed=4, dtype=torch.float32)).sum()
    first = torch.autograd.grad(loss, [x, rules.center, rules.log_precision], create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), rules.center)
    assert torch.isfinite(firing).all() and all(torch.isfinite(g).all() for g in (*first, *second))


@each_kind
def test_permuting_the_rules_of_every_kind_leaves_its_answers(kind):  # I-21
    rules, z, order = rules_of(kind_of(kind)), normal(2, 6, EMBEDDING), torch.tensor([3, 0, 4, 1, 2])
    per_rule = ("center", "log_precision", "factor", "log_slope", "consequent", "label_score", "slope")
    other = FuzzyRules(EMBEDDING, LABELS, kind_of(kind)).double()
    other.load_state_dict({n: t[order] if n in per_rule else t for n, t in rules.state_dict().items()})
    said, permuted = fire(rules, z), fire(other, z)
    torch.testing.assert_close(permuted.firing, said.firing[..., order])
    torch.testing.assert_close(permuted.embedding, said.embedding)


@each_kind
def test_every_kind_has_positive_definite_precisions_and_right_derivatives(kind):  # I-22
    rules, z = rules_of(kind_of(kind)), normal(1, 3, EMBEDDING)
    assert (torch.linalg.eigvalsh(rules_of(kind_of(kind), noise=8.0).precision()) > 0).all()

    def layer(consequent, shift):
        return fire(rules, z, consequent=consequent, shift=shift).embedding

    fast = (normal(1, 5, 3, seed=9).requires_grad_(), 0.3 * normal(1, 5, 4, seed=10).requires_grad_())
    assert gradcheck(layer, fast)
    assert gradgradcheck(layer, fast)


def test_a_full_precision_can_be_any_low_rank_one():  # I-17
    low, full = rules_of(), rules_of(kind_of("full"))
    lower = torch.linalg.cholesky(low.precision().detach())
    with torch.no_grad():
        full.center.copy_(low.center)
        full.log_precision.copy_(lower.diagonal(dim1=1, dim2=2).log())
        full.factor.copy_(torch.tril(lower, -1) + torch.triu(torch.ones(4, 4)))  # what is above is not looked at
    x = normal(2, 6, 4)
    torch.testing.assert_close(full.distance(x), low.distance(x))
    torch.testing.assert_close(full.precision(), low.precision())
    torch.testing.assert_close(torch.from_numpy(covariances(SimpleNamespace(rules=full))),
                               torch.from_numpy(covariances(SimpleNamespace(rules=low))))  # fmt: skip


def test_htsk_firing_does_not_collapse_onto_one_rule_as_features_grow_while_tsk_firing_does():  # I-19
    entropy = {}
    for firing in ("tsk", "htsk"):
        for n_features in (4, 64):
            rules = rules_of(FuzzyConfig(n_rules=24, n_features=n_features, firing=firing), noise=0.0)
            fired = rules.fire(rules.distance(normal(1, 400, n_features)))
            entropy[firing, n_features] = firing_entropy(fired).mean().item()
    assert entropy["htsk", 64] >= entropy["htsk", 4] > 0.9
    assert entropy["tsk", 64] < entropy["tsk", 4] / 2


def test_plain_firing_has_no_scale_and_calibration_leaves_it_alone():
    for kind in ("tsk", "htsk"):
        rules = rules_of(kind_of(kind))
        before = {name: value.clone() for name, value in rules.state_dict().items()}
        rules.calibrate(normal(50, 4))
        assert "log_scale" not in before
        assert all(torch.equal(value, before[name]) for name, value in rules.state_dict().items())
        assert 0 < rules.overlap().item() < 1


def test_bells_are_calibrated_to_the_wanted_entropy_too():
    rules, x = rules_of(kind_of("bell", entropy=0.6)), normal(300, 4)
    rules.calibrate(x)
    assert firing_entropy(rules.fire(rules.distance(x[None]))).mean().item() == pytest.approx(0.6, abs=1e-3)


def test_a_first_order_layer_starts_as_the_zero_order_one():
    zero, first = rules_of(noise=0.0), rules_of(kind_of("first-order"), noise=0.0)
    first.load_state_dict(zero.state_dict() | {n: first.state_dict()[n] for n in ("slope", "directions.weight")})
    z = normal(2, 6, EMBEDDING)
    assert torch.equal(fire(first, z).embedding, fire(zero, z).embedding)
    with torch.no_grad():
        first.slope.add_(1.0)
    assert not torch.allclose(fire(first, z).embedding, fire(zero, z).embedding)


# Rules that nobody needs


def test_a_rule_is_dead_after_as_many_idle_steps_in_a_row_as_agreed():
    use, idle, busy = RuleUse(4), torch.tensor([[0.4, 0.3, 0.3, 0.0]]), torch.full((1, 4), 0.25)
    assert [use.observe(firing, 3).tolist()[3] for firing in (idle, idle, busy, idle, idle, idle, idle)] == [
        False, False, False, False, False, True, False]  # fmt: skip
    assert use.idle.tolist() == [0, 0, 0, 1]
    assert not any(use.observe(idle, 0).any() for _ in range(9)), "0 means never"


def test_a_dead_rule_is_placed_at_the_least_typical_clip_with_the_mean_widths_of_the_living():
    rules, x = rules_of(dtype=torch.float32), normal(60, 4, dtype=torch.float32)
    x[17] = 30
    before = {name: value.clone() for name, value in rules.state_dict().items()}
    rules.reseed(x, torch.tensor([False, True, False, False, False]))
    assert torch.equal(rules.center[1], x[17])
    torch.testing.assert_close(rules.log_precision[1], before["log_precision"][[0, 2, 3, 4]].mean(0))
    assert (rules.factor[1] == 0).all()
    for name in ("center", "log_precision", "factor"):
        assert torch.equal(getattr(rules, name)[[0, 2, 3, 4]], before[name][[0, 2, 3, 4]])
    assert torch.equal(rules.consequent, before["consequent"])


def test_two_dead_rules_go_to_different_clips_and_all_dead_rules_still_find_places():
    rules, x = rules_of(dtype=torch.float32), normal(60, 4, dtype=torch.float32)
    x[17], x[18] = 30, -30
    rules.reseed(x, torch.tensor([False, True, False, True, False]))
    assert {tuple(c.tolist()) for c in rules.center[[1, 3]]} == {tuple(x[17].tolist()), tuple(x[18].tolist())}
    rules.reseed(x, torch.ones(5, dtype=torch.bool))
    assert torch.isfinite(rules.center).all() and len(rules.center.unique(dim=0)) == 5
