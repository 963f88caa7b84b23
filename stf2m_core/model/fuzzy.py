"""Generalised fuzzy rules: clip embeddings go in; firing, typicality, consequents and label distributions come out.

What a rule is near to, and how strongly it fires, stands in `antecedents`; here is what it answers, and what it has
learned of labels. METHOD, 'Fuzzy rules'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stf2m_core.config import FuzzyConfig
from stf2m_core.model.antecedents import Antecedents, firing_entropy


def rule_labels(firing: Tensor, target: Tensor, weight: Tensor, prior: Tensor, prior_weight: float) -> Tensor:
    """Pi_re = (sum_i w_i phi_ri q_ie + a pi_re) / (sum_i w_i phi_ri + a): each rule's label distribution.

    Args:
        firing: (episode, clip, rule) of the support.
        target: (episode, clip, way) label distributions of the support.
        weight: (episode, clip) reliability.
        prior: (episode, rule, way) rows sum to one.
        prior_weight: a, in clips.
    """
    mass = weight[..., None] * firing
    votes = torch.einsum("esr,esw->erw", mass, target)
    return (votes + prior_weight * prior) / (mass.sum(1)[..., None] + prior_weight)


def rule_labels_left_out(firing: Tensor, target: Tensor, weight: Tensor, prior: Tensor, prior_weight: float) -> Tensor:
    """As `rule_labels`, for each support clip without that clip: (episode, clip, rule, way)."""
    mass = weight[..., None] * firing
    votes = torch.einsum("esr,esw->erw", mass, target)[:, None] - mass[..., None] * target[:, :, None]
    total = mass.sum(1)[:, None] - mass
    return (votes.clamp(min=0) + prior_weight * prior[:, None]) / (total.clamp(min=0)[..., None] + prior_weight)


@dataclass(frozen=True)
class Fuzzified:
    """What the rules say of some clips.

    Attributes:
        firing: (episode, clip, rule) phi, sums to one over rules.
        entropy: (episode, clip) normalised entropy of firing.
        typicality: (episode, clip) log of the best membership per feature, <= 0; low: unlike anything seen.
        embedding: (episode, clip, embedding) fuzzy-enriched.
    """

    firing: Tensor
    entropy: Tensor
    typicality: Tensor
    embedding: Tensor


class FuzzyRules(Antecedents):
    """The rule layer with its consequents.

    Args:
        embedding: numbers per clip.
        n_labels: labels of the data set, for what each rule has learned of known emotions.
        config: kinds and sizes.
    """

    def __init__(self, embedding: int, n_labels: int, config: FuzzyConfig):
        nn.Module.__init__(self)  # weights are drawn in the order in which the layer uses them
        self.config = config
        n_rules, n_features = config.n_rules, config.n_features
        self.reduce = nn.Linear(embedding, n_features)
        self.norm = nn.LayerNorm(n_features)
        self._make_antecedents()
        self.consequent = nn.Parameter(torch.randn(n_rules, config.n_consequents) * 0.1)
        self.label_score = nn.Parameter(torch.zeros(n_rules, n_labels))
        self.enrich = nn.Linear(config.n_consequents + 3, embedding, bias=False)
        self.out = nn.LayerNorm(embedding)
        if config.consequents == "first-order":
            self.directions = nn.Linear(n_features, config.n_directions, bias=False)
            self.slope = nn.Parameter(torch.zeros(n_rules, config.n_consequents, config.n_directions))

    def features(self, embedding: Tensor) -> Tensor:
        """x = LN(W z): what the antecedents see, (episode, clip, feature), never below float32."""
        return self.norm(self.reduce(embedding.to(self.reduce.weight.dtype)))

    def prior(self, classes: Tensor, known: Tensor) -> Tensor:
        """(episode, rule, way) what each rule has learned of the episode's classes; uniform if one of them is new.

        Args:
            classes: (episode, way) labels of the data set.
            known: (label,) bool.
        """
        learned = torch.softmax(self.label_score[:, classes].transpose(0, 1), -1)
        uniform = torch.full_like(learned, 1 / classes.shape[1])
        return torch.where(known[classes].all(1)[:, None, None], learned, uniform)

    def forward(
        self, embedding: Tensor, disagreement: Tensor, consequent: Tensor, shift: Tensor, kept: Tensor | None = None
    ) -> Fuzzified:
        """Fire the rules.

        Args:
            embedding: (episode, clip, embedding).
            disagreement: (episode, clip) of the modalities.
            consequent: (episode, rule, consequent) fast.
            shift: (episode, rule, feature) fast shift of the centres.
            kept: (episode, 1, rule) bool of DropRule.
        """
        features = self.features(embedding)
        distance = self.distance(features, shift)
        firing = self.fire(distance, kept)
        entropy = firing_entropy(firing)
        typicality = -distance.amin(-1) / (2 * features.shape[-1])
        answer = self.answer(features, firing, consequent)
        extra = torch.stack([entropy, typicality.clamp(min=-10), disagreement.to(entropy.dtype)], -1)
        enriched = self.out(embedding + self.enrich(torch.cat([answer, extra], -1)))
        return Fuzzified(firing, entropy, typicality, enriched)

    def answer(self, features: Tensor, firing: Tensor, consequent: Tensor) -> Tensor:
        """sum_r phi_r o_r, (episode, clip, consequent), with o_r = b_r, or o_r = b_r + A_r B x if first-order.

        A_r starts at zero: a first-order layer starts as the zero-order one.
        """
        answer = torch.einsum("ebr,erg->ebg", firing, consequent)
        if self.config.consequents == "first-order":
            answer = answer + torch.einsum("ebr,rgk,ebk->ebg", firing, self.slope, self.directions(features))
        return answer


class PlainNetwork(nn.Module):
    """What stands in for the rules in the ablation: a network of as many weights that says nothing of labels."""

    def __init__(self, embedding: int, n_weights: int):
        super().__init__()
        width = max(1, round(n_weights / (2 * embedding + 1)))
        self.net = nn.Sequential(nn.Linear(embedding + 1, width), nn.ReLU(), nn.Linear(width, embedding, bias=False))
        self.out = nn.LayerNorm(embedding)

    def forward(self, embedding: Tensor, disagreement: Tensor) -> Tensor:
        """(episode, clip, embedding) to the same."""
        return self.out(embedding + self.net(torch.cat([embedding, disagreement[..., None]], -1)))
