"""Every kind of rule against slow loops in float64, scipy, and a public TSK implementation where it is installed."""

import importlib
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from stf2m_core.config import FuzzyConfig
from stf2m_core.model.antecedents import Antecedents, membership
from stf2m_core.model.fuzzy import FuzzyRules

F, R = 4, 5
KINDS = {"low-rank": 2, "diagonal": 0, "full": 0, "bell": 2}
FIRINGS = {kind: ("calibrated", "tsk", "htsk") if kind != "bell" else ("calibrated", "tsk") for kind in KINDS}
PAIRS = [(kind, firing) for kind in KINDS for firing in FIRINGS[kind]]


def antecedents(kind="low-rank", firing="calibrated", n_rules=R, n_features=F):
    config = FuzzyConfig(antecedent=kind, firing=firing, rank=KINDS[kind], n_rules=n_rules, n_features=n_features)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = Antecedents(config)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(torch.tensor(0.4 * rng.normal(size=tuple(weight.shape))))
    return layer.double()


def clips(n=7, n_features=F, seed=2):
    return np.random.default_rng(seed).normal(size=(n, n_features))


def slow_log_membership(layer, x):
    """(clip, rule) by sums over single numbers."""
    config = layer.config
    center, lam, u = (t.detach().numpy() for t in (layer.center, layer.log_precision, layer.factor))
    result = np.zeros((len(x), config.n_rules))
    for b in range(len(x)):
        for r in range(config.n_rules):
            d = [x[b, f] - center[r, f] for f in range(config.n_features)]
            if config.antecedent == "full":
                along = []
                for g in range(config.n_features):
                    own = math.exp(lam[r, g]) * d[g]
                    along.append(own + sum(u[r, f, g] * d[f] for f in range(g + 1, config.n_features)))
                m = sum(a * a for a in along)
            else:
                m = sum((math.exp(lam[r, f]) * d[f]) ** 2 for f in range(config.n_features))
                m += sum(sum(u[r, f, q] * d[f] for f in range(config.n_features)) ** 2 for q in range(config.rank))
            bell = config.antecedent == "bell"
            slope = math.exp(layer.log_slope[r].item()) if bell else 1.0
            result[b, r] = math.log(1 / (1 + m**slope)) if bell else -m / 2
    return result


def slow_firing(layer, x):
    per_rule = slow_log_membership(layer, x)
    n_features, kind = layer.config.n_features, layer.config.firing
    power = {"tsk": 1.0, "htsk": 1 / n_features}.get(kind)
    if power is None:
        power = math.exp(layer.log_scale.item()) / n_features
    rows = []
    for row in per_rule:
        weight = [math.exp(power * value) for value in row]
        rows.append([w / sum(weight) for w in weight])
    return np.array(rows)


@pytest.mark.parametrize(("kind", "firing"), PAIRS)
def test_memberships_and_firing_are_those_of_a_slow_loop(kind, firing):
    layer, x = antecedents(kind, firing), clips()
    distance = layer.distance(torch.tensor(x)[None])
    np.testing.assert_allclose(-distance[0].detach() / 2, slow_log_membership(layer, x), atol=1e-12)
    np.testing.assert_allclose(layer.fire(distance)[0].detach(), slow_firing(layer, x), atol=1e-12)


@pytest.mark.parametrize("kind", ["low-rank", "diagonal", "full"])
def test_a_gaussian_rule_is_scipys_multivariate_normal_up_to_its_peak(kind):
    layer, x = antecedents(kind), clips()
    ours = membership(layer.distance(torch.tensor(x)[None]))[0].detach().numpy()
    for rule in range(R):
        covariance = np.linalg.inv(layer.precision()[rule].detach().numpy())
        normal = multivariate_normal(layer.center[rule].detach().numpy(), (covariance + covariance.T) / 2)
        np.testing.assert_allclose(ours[:, rule], normal.pdf(x) / normal.pdf(normal.mean), rtol=1e-9)


def test_a_bell_of_one_feature_is_that_of_anfis():
    layer = antecedents("bell", "tsk", n_features=1)
    with torch.no_grad():
        layer.factor.zero_()
    x = np.linspace(-3, 3, 25)[:, None]
    width = np.exp(-layer.log_precision.detach().numpy()[:, 0])
    slope = np.exp(layer.log_slope.detach().numpy())
    expected = 1 / (1 + np.abs((x - layer.center.detach().numpy()[:, 0]) / width) ** (2 * slope))
    ours = membership(layer.distance(torch.tensor(x)[None]))[0].detach().numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-8)


def test_first_order_answers_are_those_of_a_slow_loop():
    config = FuzzyConfig(n_rules=R, n_features=F, rank=2, n_consequents=3, consequents="first-order", n_directions=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = FuzzyRules(6, 7, config).double()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        layer.slope.copy_(torch.tensor(rng.normal(size=(R, 3, 2))))
    x, firing, constant = rng.normal(size=(1, 4, F)), rng.dirichlet(np.ones(R), (1, 4)), rng.normal(size=(1, R, 3))
    ours = layer.answer(*(torch.tensor(part) for part in (x, firing, constant)))[0].detach().numpy()
    slope, basis = layer.slope.detach().numpy(), layer.directions.weight.detach().numpy()
    for b in range(4):
        for g in range(3):
            total = 0.0
            for r in range(R):
                seen = [sum(basis[k, f] * x[0, b, f] for f in range(F)) for k in range(2)]
                total += firing[0, b, r] * (constant[0, r, g] + sum(slope[r, g, k] * seen[k] for k in range(2)))
            assert ours[b, g] == pytest.approx(total, abs=1e-12)


# A public implementation: PyTSK (package scikit-pytsk), test-only


@pytest.fixture(scope="module")
def pytsk():
    """Its modules of antecedents and of the whole TSK, or a skip where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its docstrings hold invalid escapes
        pytest.importorskip("pytsk", reason="PyTSK is not installed: pip install scikit-pytsk")
        return importlib.import_module("pytsk.gradient_descent")


def theirs_of(pytsk, layer, high_dim):
    theirs = pytsk.antecedent.AntecedentGMF(F, R, high_dim=high_dim, eps=0.0)
    with torch.no_grad():
        theirs.center.copy_(layer.center.T)
        theirs.sigma.copy_(torch.exp(-layer.log_precision).T)
    return theirs.double()


@pytest.mark.parametrize(("firing", "high_dim"), [("tsk", False), ("htsk", True)])
def test_firing_of_axis_parallel_rules_is_pytsks(pytsk, firing, high_dim):
    layer, x = antecedents("diagonal", firing), torch.tensor(clips())
    theirs = theirs_of(pytsk, layer, high_dim)
    with torch.no_grad():  # the same float32 numbers on both sides
        layer.center.copy_(theirs.center.T)
        layer.log_precision.copy_(-torch.log(theirs.sigma.T))
        ours = layer.fire(layer.distance(x[None]))[0]
        np.testing.assert_allclose(ours, theirs(x), atol=1e-7)


@pytest.mark.parametrize(("order", "consequents"), [(0, "zero-order"), (1, "first-order")])
def test_the_output_of_a_whole_tsk_is_pytsks(pytsk, order, consequents):
    n_outputs = 3
    config = FuzzyConfig(antecedent="diagonal", firing="htsk", rank=0, n_rules=R, n_features=F, n_consequents=n_outputs,
                         consequents=consequents, n_directions=F)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = FuzzyRules(6, 7, config).double()
        whole = pytsk.tsk.TSK(F, n_outputs, R, theirs_of(pytsk, ours, True), order=order).double()
    x = torch.tensor(clips())
    with torch.no_grad():
        ours.log_precision.copy_(-torch.log(whole.antecedent.sigma.T))
        ours.center.copy_(whole.antecedent.center.T)
        weight = whole.cons.weight  # (output, rule x feature and then rule)
        constant = weight[:, -R:].T
        if order == 1:
            ours.directions.weight.copy_(torch.eye(F))
            ours.slope.copy_(weight[:, : R * F].reshape(n_outputs, R, F).permute(1, 0, 2))
        firing = ours.fire(ours.distance(x[None]))
        answer = ours.answer(x[None], firing, constant[None])[0] + whole.cons.bias
        np.testing.assert_allclose(answer, whole(x), atol=1e-7)
        assert answer.std() > 0.01
