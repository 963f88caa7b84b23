"""ST-F2M, where encoder, fuzzy rules and meta-RNN meet: adapt(support) -> fast weights, predict(query, fast weights).

Every fast tensor carries a leading episode axis, losses of different episodes are independent, and one gradient of
their sum gives every episode's gradient: the whole meta-batch is one batch. Source: METHOD, 'Adaptation'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot, softplus

from stf2m_core.config import RunConfig
from stf2m_core.errors import ConfigError
from stf2m_core.model.encoder import Dropout, Encoded, Encoder
from stf2m_core.model.fuzzy import Fuzzified, FuzzyRules, PlainNetwork, rule_labels, rule_labels_left_out
from stf2m_core.model.knowledge import Knowledge
from stf2m_core.model.meta_rnn import TaskEncoder, tokens
from stf2m_core.model.recurrent_learner import RecurrentLearner, facts
from stf2m_core.shapes import ViewBatch

LOG_FLOOR = 1e-6


@dataclass(frozen=True)
class FastWeights:
    """What adapts, one row per episode.

    Attributes:
        center: (episode, way, embedding) c_e, where each class lies.
        metric: (episode, embedding) s, log factor of what each feature counts.
        bias: (episode, way) b_e.
        consequent: (episode, rule, consequent).
        shift: (episode, rule, feature) of the rule centres.
        gamma: (episode, channel) FiLM scale.
        beta: (episode, channel) FiLM shift.
        residual: (episode, way, embedding) v_e, what the recurrent network adds; does not adapt.
        own: (episode, way * shot, way, embedding) what each support clip itself added to the centers; does not adapt.
    """

    center: Tensor
    metric: Tensor
    bias: Tensor
    consequent: Tensor
    shift: Tensor
    gamma: Tensor
    beta: Tensor
    residual: Tensor
    own: Tensor


GROUPS = {"head": ("center", "metric", "bias"), "fuzzy": ("consequent", "shift"), "film": ("gamma", "beta")}
"""Names of the fast tensors of each group."""


@dataclass(frozen=True)
class Support:
    """The support of some episodes, encoded.

    Attributes:
        clean: clips as they are, episode-major.
        views: random views, `n_views` of each clip, episode-major, views of one clip apart by the number of clips.
        target: (episode, way * shot, way) label distributions, rows sum to one.
        weight: (episode, way * shot) how much each clip counts.
        classes: (episode, way) labels of the data set.
        own: (episode,) bool, whether the query is of the support's person (Regime P).
        person: (episode, way * shot) int64, whose clip it is.
        order: (draw, episode, way, shot) in which the recurrent network reads.
        kept: (episode, 1, rule) bool of DropRule, or None.
    """

    clean: Encoded
    views: Encoded
    target: Tensor
    weight: Tensor
    classes: Tensor
    own: Tensor
    person: Tensor
    order: Tensor
    kept: Tensor | None = None

    @property
    def left(self) -> Tensor:
        """(episode, way * shot) share of a clip's class that is there without it."""
        share = self.weight[..., None] * self.target
        rest = 1 - share / share.sum(1, keepdim=True).clamp(min=1e-8)
        return (self.target * rest).sum(-1).clamp(min=0)


@dataclass(frozen=True)
class Prediction:
    """What the model says of some clips under some fast weights.

    Attributes:
        log_probability: (episode, clip, way).
        label_distribution: (episode, clip, way) of the fuzzy rules alone, rows sum to one.
        fuzzified: firing, entropy, typicality, embedding.
    """

    log_probability: Tensor
    label_distribution: Tensor
    fuzzified: Fuzzified


class STF2M(nn.Module):
    """The whole model.

    Args:
        shapes: modality -> (nodes, channels).
        steps: modality -> usual gap between frames, seconds.
        known: (label,) bool, the emotions of meta-train if what is learned of them may be used, else all False.
        config: settings of the run.
        edges: modality -> (edge, 2) nodes that are neighbours, where that is known.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], steps: Mapping[str, float], known: Tensor, config: RunConfig,
        edges: Mapping[str, Tensor] = MappingProxyType({}),
    ):  # fmt: skip
        super().__init__()
        self.config = config
        hidden, size = config.encoder.hidden, config.encoder.embedding
        fuzzy = config.fuzzy
        self.encoder = Encoder(shapes, steps, config.encoder, edges)
        self.turned = config.train.start > 0
        if self.turned:  # next to the encoder, so that a start is the same whatever else a variant takes away (D-94)
            self.name_emotion = nn.Linear(size, len(known))
        self.rules = FuzzyRules(size, len(known), fuzzy)
        n_token = size + fuzzy.n_rules + 5 + len(shapes)
        reader = RecurrentLearner if config.meta_rnn.kind == "recurrent" else TaskEncoder
        self.task_encoder = reader(n_token, hidden, size, config.meta_rnn)
        if fuzzy.kind == "mlp":
            self.plain = PlainNetwork(size, sum(p.numel() for p in self.rules.parameters()))
            del self.rules
        self.register_buffer("known", known)
        # [other people, own]: temperature of the answers, from meta-validation
        self.register_buffer("softening", torch.ones(2))
        self.anchor = nn.Parameter(torch.randn(len(known), size) * 0.1)
        # [other people, own]: what an anchor is worth, in clips, and the metric, per embedding feature
        self.log_worth = nn.Parameter(torch.ones(2, size))
        self.log_metric = nn.Parameter(torch.zeros(2, size))
        self.log_worth_shift = nn.Parameter(torch.zeros(size))
        self.log_temperature = nn.Parameter(torch.tensor(float(size)).log())
        self.fuzzy_voice = nn.Parameter(torch.tensor(0.5).expm1().log())
        for name, (nodes, channels) in shapes.items():
            self.register_buffer(f"shift_{name}", torch.zeros(1, nodes, channels))
            self.register_buffer(f"scale_{name}", torch.ones(1, nodes, channels))
            self.register_buffer(f"worth_{name}", torch.ones(2, nodes, channels))
        if self.turned:
            # axes of the head, and what the mean of an episode's emotions is worth for a new one, in clips: both are
            # placed when the start ends (D-90)
            self.axes = nn.Parameter(torch.eye(size))
            self.log_worth_new = nn.Parameter(torch.full((size,), LOG_FLOOR).log())
        self.rates = nn.ParameterDict(self._rates(size, hidden))

    def _rates(self, size: int, hidden: int) -> dict[str, nn.Parameter]:
        """Raw inner learning rates (softplus makes them positive), per parameter but tied over classes and episodes."""
        fuzzy, inner = self.config.fuzzy, self.config.inner
        shapes = {
            "center": (size,), "metric": (size,), "bias": (), "consequent": (fuzzy.n_rules, fuzzy.n_consequents),
            "shift": (fuzzy.n_rules, fuzzy.n_features), "gamma": (hidden,), "beta": (hidden,),
        }  # fmt: skip
        relative = {
            "center": inner.center_rate, "metric": 1.0,
            # a bias moves all clips alike: at full speed it would learn a class by its number before any feature
            "bias": 0.1 * inner.center_rate,
            "consequent": inner.fuzzy_rate, "shift": inner.fuzzy_rate,
            "gamma": inner.film_rate, "beta": inner.film_rate,
        }  # fmt: skip
        return {
            name: nn.Parameter(torch.full(shape, relative[name] * inner.rate).expm1().log())
            for name, shape in shapes.items()
            if name in self.adapting
        }

    @property
    def has_rules(self) -> bool:
        """False in the ablation without fuzzy rules."""
        return self.config.fuzzy.kind == "rules"

    @property
    def adapting(self) -> tuple[str, ...]:
        """Names of the fast tensors that the inner loop changes; none in a model without inner steps."""
        if self.config.inner.steps_train == self.config.inner.steps_test == 0:
            return ()
        groups = [g for g in self.config.inner.fast if g != "fuzzy" or self.config.fuzzy.kind == "rules"]
        stay = ("center", "bias") if self.config.inner.center_rate == 0 else ()
        return tuple(name for group in groups for name in GROUPS[group] if name not in stay)

    def encode(self, views: Mapping[str, ViewBatch], dropout: Dropout | None = None) -> Encoded:
        """All convolutions, once per clip; in bfloat16 if the config says so, everything after in float32."""
        if self.config.train.precision != "bfloat16":
            return self.encoder(views, dropout or Dropout())
        device = next(iter(views.values())).values.device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            encoded = self.encoder(views, dropout or Dropout())
        return replace(encoded, normed=encoded.normed.float(), residual=encoded.residual.float())

    def fuzzify(self, encoded: Encoded, theta: FastWeights, kept: Tensor | None = None) -> Fuzzified:
        """Read out, fuse and fire the rules under some fast weights; after a start, turn to the axes of the head."""
        z, disagreement = self.encoder.embed(encoded, theta.gamma, theta.beta)
        if self.has_rules:
            said = self.rules(z, disagreement, theta.consequent, theta.shift, kept)
        else:
            n_rules = self.config.fuzzy.n_rules
            even = z.new_full((*z.shape[:2], n_rules), 1 / n_rules)
            said = Fuzzified(even, z.new_ones(z.shape[:2]), z.new_zeros(z.shape[:2]), self.plain(z, disagreement))
        return replace(said, embedding=said.embedding @ self.axes) if self.turned else said

    def unmodulated(self, n_episodes: int) -> FastWeights:
        """Fast weights before anything of the episode was read; the head is empty."""
        zero = self.anchor.new_zeros(n_episodes, self.config.encoder.hidden)
        if self.has_rules:
            consequent = self.rules.consequent.expand(n_episodes, -1, -1)
            shift = torch.zeros_like(self.rules.center).expand(n_episodes, -1, -1)
        else:
            consequent = shift = self.anchor.new_zeros(n_episodes, 1, 1)
        none = self.anchor.new_zeros(n_episodes, 0)
        return FastWeights(none, none, none, consequent, shift, zero, zero, none, none)

    def start(self, support: Support, *, conditioned: bool = True) -> FastWeights:
        """theta_0: where the inner loop starts.

        Args:
            support: of the episodes.
            conditioned: False leaves out what the recurrent network read (prototypes only).
        """
        n_episodes = support.classes.shape[0]
        theta = self.unmodulated(n_episodes)
        if conditioned and self.config.meta_rnn.kind == "recurrent":
            return theta  # without a head: the recurrent learner answers
        plain = self.fuzzify(support.clean, theta)
        if not conditioned:
            return self._with_head(theta, plain, support, 0.0, self.anchor.new_zeros(n_episodes))
        z, disagreement = self.encoder.embed(support.clean, theta.gamma, theta.beta)
        token = tokens(
            z, plain.firing, support.target, plain.entropy, disagreement,
            support.clean.duration.unflatten(0, (n_episodes, -1)), support.clean.present.unflatten(0, (n_episodes, -1)),
        )  # fmt: skip
        code = self.task_encoder(token, support.order, support.classes)
        theta = replace(theta, gamma=code.gamma, beta=code.beta)
        return self._with_head(theta, self.fuzzify(support.clean, theta), support, code.head, code.trust)

    @torch.no_grad()
    def know(self, known: Knowledge) -> None:
        """Start anchors, their worth in clips and the metric from the embedding's moments over meta-train (D-22).

        Own clips correct what is known of people in general; other people's clips only refine it, as one more person
        would. How far emotions lie apart says what the clips of a new one are worth (D-90).
        A prototype of one clip leaves habit * clip / (habit + clip) unknown; a query of someone else adds the person.
        """
        habit, person = known.habit / known.clip, known.person / known.clip
        self.anchor.copy_(known.anchor)
        others = habit + person
        self.log_worth.copy_(torch.stack([known.n_persons * (1 + others) / others, 1 / habit]).log())
        self.log_worth_shift.copy_(-person.log())
        if self.turned:
            self.log_worth_new.copy_((known.clip / known.emotion).log())
        doubt = torch.stack([1 + habit + person, 1 + habit / (1 + habit)])
        temperature = self.log_temperature.exp().to(known.clip.device)
        self.log_metric.copy_((temperature / (2 * known.clip * doubt)).log())

    def _with_head(
        self, theta: FastWeights, fuzzified: Fuzzified, support: Support, residual: Tensor | float, trust: Tensor
    ) -> FastWeights:
        """The head starts at the prototypes."""
        center = self.prototypes(fuzzified.embedding, support, trust)
        zero = torch.zeros_like(center[..., 0])
        theta = replace(theta, center=center, metric=torch.zeros_like(center[:, 0]), bias=zero,
                        residual=residual + torch.zeros_like(center))  # fmt: skip
        if not self.config.inner.left_out:
            return theta
        return replace(theta, own=center[:, None] - self.prototypes(fuzzified.embedding, support, trust, left_out=True))

    def head(self, embedding: Tensor, theta: FastWeights, support: Support, *, left_out: bool = False) -> Tensor:
        """W_e . e + b_e with W_e = 2 m c_e + v_e and b_e = b'_e - |c_e|^2_m: distances to the centers in the metric m.

        (episode, clip, way). The centers adapt, not W_e, so that the head stays one of distances. Source: Proto-MAML
        (Triantafillou et al. 2020); its form ours, D-57.

        Args:
            embedding: (episode, clip, embedding); if left out, of `n` views of each support clip, view by view.
            theta: fast weights.
            support: of the episodes.
            left_out: each support clip meets centers to which it added nothing.
        """
        metric = self.log_metric[support.own.long()].exp() * (theta.metric - self.log_temperature).exp()
        added = torch.einsum("ebd,ewd->ebw", embedding, theta.residual) + theta.bias[:, None]
        if not left_out:
            weight = 2 * metric[:, None] * theta.center
            bias = -(metric[:, None] * theta.center**2).sum(-1)
            return added + torch.einsum("ebd,ewd->ebw", embedding, weight) + bias[:, None]
        center, metric = theta.center[:, None] - theta.own, metric[:, None, None]
        views = embedding.unflatten(1, (-1, center.shape[1]))
        said = torch.einsum("evsd,eswd->evsw", views, 2 * metric * center) - (metric * center**2).sum(-1)[:, None]
        return added + said.flatten(1, 2)

    def prototypes(self, embedding: Tensor, support: Support, trust: Tensor, *, left_out: bool = False) -> Tensor:
        """c_e = (sum_i f_ie w_i q_ie e_i + k_e (a_e + s)) / (sum_i f_ie w_i q_ie + k_e): means of a two-level Gaussian.

        a_e is the anchor of a known emotion and k_e its worth in clips. For a new emotion a_e is the mean of the
        episode's emotions and k_e what emotions in general lie apart, or 0 if there was no start. s is the shift of the
        support's person, shared by all emotions: s = sum_e g_e (m_e - a_e) / (sum_e g_e + v), where m_e is the mean of
        the n_e clips and g_e = n_e k_e / (n_e + k_e); 0 where the query is of someone else. There people are counted
        and not their clips: of n clips of one person each counts f = (1 + o) / (1 + n o), where o = 1/k_own + 1/v is
        what people differ, in variances of a clip; beside own clips and for new emotions f = 1. Source: prototypes of
        Snell et al. 2017; shrinkage to a common mean of James & Stein 1961; anchors, shift and count ours, D-08, D-22,
        D-75 and D-90.

        Args:
            embedding: (episode, way * shot, embedding) e_i.
            support: of the episodes.
            trust: (episode,) log factor of k_e.
            left_out: for each support clip without that clip; a new emotion of which nothing is left is put at the
                mean of the others.

        Returns:
            (episode, way, embedding), or (episode, way * shot, way, embedding) if left out.
        """
        share = (support.weight[..., None] * support.target)[..., None]
        own, row = support.own[:, None, None, None], support.own.long()
        known = self.known[support.classes][:, None, :, None]
        worth = known * torch.exp(self.log_worth[row] + trust[:, None])[:, None, None]
        anchor = self.anchor[support.classes][:, None]
        same = (support.person[:, :, None] == support.person[:, None]).to(share.dtype)
        people = torch.einsum("est,etw->esw", same, share[..., 0])[..., None]
        others = (known & ~own) * (torch.exp(-self.log_worth[1]) + torch.exp(-self.log_worth_shift))
        factor = (1 + others) / (1 + people * others)
        each = factor * share
        count, total = each.sum(1, keepdim=True), torch.einsum("eswd,esd->ewd", each, embedding)[:, None]
        if left_out:
            less = (1 + others) / (1 + (people - share).clamp(min=0) * others)
            of_person = torch.einsum("est,etw,etd->eswd", same, share[..., 0], embedding)
            count = (count - less * share + (less - factor) * people).clamp(min=0)
            total = total - less * share * embedding[:, :, None] + (less - factor) * of_person
        mean = total / count.clamp(min=1e-8)
        certainty = count * worth / (count + worth).clamp(min=1e-8)
        doubt = certainty.sum(-2, keepdim=True) + self.log_worth_shift.exp()
        shift = own * (certainty * (mean - anchor)).sum(-2, keepdim=True) / doubt
        start = anchor + shift
        if self.turned:
            there = (count > 0).to(mean.dtype)
            common = (there * mean).sum(-2, keepdim=True) / there.sum(-2, keepdim=True).clamp(min=1)
            start = torch.where(known, start, common)
            worth = torch.where(known, worth, torch.exp(self.log_worth_new + trust[:, None])[:, None, None])
        center = (total + worth * start) / (count + worth).clamp(min=1e-8)
        return center if left_out else center[:, 0]

    def adapt(self, support: Support, n_steps: int, *, second_order: bool = False, conditioned: bool = True,
              differentiable: bool = False) -> list[FastWeights]:  # fmt: skip
        """theta_0 ... theta_k: gradient steps on random views of the support.

        theta_{j+1} = theta_j - alpha * clip(grad L_in(theta_j)), the same formula for every episode at once; no step is
        taken where no clip has others of its class, and so nothing to learn from.

        Args:
            support: of the episodes.
            n_steps: k.
            second_order: keep the graph of the inner gradients for the outer gradient.
            conditioned: False leaves out what the recurrent network read.
            differentiable: keep theta_0's graph (training); else the result is detached from the model.

        Raises:
            ConfigError: if steps are asked of a model that has learned no inner rates.
        """
        if n_steps > 0 and not self.adapting:
            raise ConfigError(f"{n_steps} inner steps", expected="0, as steps_train and steps_test of this model say",
                              where="adapt")  # fmt: skip
        theta = self.start(support, conditioned=conditioned)
        if not differentiable:
            support = _detached(support)
            theta = FastWeights(*(getattr(theta, f.name).detach() for f in fields(FastWeights)))
        if self.config.inner.left_out and not bool(support.left.any()):
            return [theta] * (n_steps + 1)
        path = [theta]
        for _ in range(n_steps):
            path.append(self._inner_step(path[-1], support, second_order, differentiable))
        return path

    def _inner_step(self, theta: FastWeights, support: Support, second_order: bool, keep: bool) -> FastWeights:
        with torch.enable_grad():
            # new graph nodes: the gradient stops here and never crosses the recurrent network twice
            leaves = {n: getattr(theta, n) + 0 for n in self.adapting}
            leaves = {n: t if t.requires_grad else t.requires_grad_() for n, t in leaves.items()}
            loss = self.inner_loss(replace(theta, **leaves), support).sum()
            gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=second_order)
        norm = torch.sqrt(sum((g.detach() ** 2).flatten(1).sum(1) for g in gradient))
        factor = (self.config.inner.clip_norm / norm.clamp(min=1e-12)).clamp(max=1)
        moved = {}
        for (name, value), slope in zip(leaves.items(), gradient, strict=True):
            slope = slope if second_order else slope.detach()
            step = softplus(self.rates[name]) * slope * factor.view(-1, *[1] * (slope.dim() - 1))
            moved[name] = (value if keep else value.detach()) - (step if keep else step.detach())
        return replace(theta, **moved)

    def inner_loss(self, theta: FastWeights, support: Support) -> Tensor:
        """L_in: weighted cross-entropy of the random views of the support, (episode,).

        No clip votes for itself: what it added to the head is taken away again, and so is its own share in the rules'
        label distributions. Otherwise the loss is small from the start, and its gradient teaches only to trust the
        support more. A clip weighs as much as its class has left without it, (n - 1) / n of n clips: with one shot
        there is nothing to learn from, and theta stays (D-57).
        """
        n_episodes, n_clips, n_way = support.target.shape
        n_views = support.views.mask.shape[0] // (n_episodes * n_clips)
        left_out = self.config.inner.left_out
        shown = self.fuzzify(support.views, theta, support.kept)
        logits = self.head(shown.embedding, theta, support, left_out=left_out)
        if self.has_rules:
            clean = self.fuzzify(support.clean, theta, support.kept)
            prior = self.rules.prior(support.classes, self.known)
            facts = (clean.firing, support.target, support.weight, prior, self.config.fuzzy.prior_weight)
            firing = shown.firing.unflatten(1, (n_views, n_clips))
            if left_out:
                share = torch.einsum("evsr,esrw->evsw", firing, rule_labels_left_out(*facts))
            else:
                share = torch.einsum("evsr,erw->evsw", firing, rule_labels(*facts))
            logits = logits + softplus(self.fuzzy_voice) * torch.log(share.flatten(1, 2) + LOG_FLOOR)
        target = support.target.repeat(1, n_views, 1)
        weight = support.weight.repeat(1, n_views)
        losses = -(target * log_softmax(logits, -1)).sum(-1)
        if left_out:
            losses = losses * support.left.repeat(1, n_views)
        return (weight * losses).sum(1) / weight.sum(1).clamp(min=1e-8)

    def predict(self, query: Encoded, theta: FastWeights, support: Support) -> Prediction:
        """Class probabilities; every clip is scored alone.

        logit_e = (W_e . e + b_e + omega log(mu_e + 1e-6)) / T, mu_e = sum_r phi_r Pi_re; T is 1 until meta-validation
        has chosen the weights.
        """
        said = self.fuzzify(query, theta, support.kept)
        logits = self._scores(query, said, theta, support)
        temperature = self.softening[support.own.long()][:, None, None]
        if not self.has_rules:
            return Prediction(log_softmax(logits / temperature, -1), torch.softmax(logits, -1), said)
        clean = self.fuzzify(support.clean, theta, support.kept)
        prior = self.rules.prior(support.classes, self.known)
        labels = rule_labels(clean.firing, support.target, support.weight, prior, self.config.fuzzy.prior_weight)
        share = torch.einsum("ebr,erw->ebw", said.firing, labels)
        logits = logits + softplus(self.fuzzy_voice) * torch.log(share + LOG_FLOOR)
        return Prediction(log_softmax(logits / temperature, -1), share, said)

    def _scores(self, query: Encoded, said: Fuzzified, theta: FastWeights, support: Support) -> Tensor:
        """(episode, clip, way) by the head, or by the recurrent learner where there is none."""
        if theta.center.numel() > 0:
            return self.head(said.embedding, theta, support)
        shown = self.fuzzify(support.clean, theta, support.kept)
        told, asked = _facts(shown, support.clean), _facts(said, query)
        anchor = self.anchor[support.classes] * self.known[support.classes][..., None]
        return self.task_encoder(told, support.target, anchor, asked, support.classes, support.order)

    def recall(self, fuzzified: Fuzzified) -> Tensor:
        """Log-probabilities over all labels of the data set from what meta-training learned of them, without support.

        (episode, clip, label); the anchors stand in for the prototypes and the rules' priors for their labels.
        """
        metric = self.log_metric[0].exp() / self.log_temperature.exp()
        logits = 2 * (fuzzified.embedding * metric) @ self.anchor.T - (metric * self.anchor**2).sum(-1)
        if self.has_rules:
            share = fuzzified.firing @ torch.softmax(self.rules.label_score, -1)
            logits = logits + softplus(self.fuzzy_voice) * torch.log(share + LOG_FLOOR)
        return log_softmax(logits, -1)


def episode_targets(soft_labels: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Label distributions within the episode's classes, and how much of each clip's label they hold.

    A clip with less than half of its label among the episode's classes weighs nothing. Source: METHOD, 'Labels'.

    Args:
        soft_labels: (clip, label) rows sum to one.
        rows: (episode, clip) int64.
        classes: (episode, way) int64.
    """
    inside = soft_labels[rows].gather(2, classes[:, None].expand(-1, rows.shape[1], -1))
    held = inside.sum(-1)
    target = inside / held.clamp(min=1e-8)[..., None]
    return target, torch.where(held >= 0.5, held, torch.zeros_like(held))


def hard_targets(labels: Tensor, n_way: int, dtype: torch.dtype) -> Tensor:
    """(episode, clip, way) one-hot."""
    return one_hot(labels, n_way).to(dtype)


def _facts(said: Fuzzified, encoded: Encoded) -> Tensor:
    """What the recurrent learner reads of some clips."""
    duration, present = (t.unflatten(0, said.entropy.shape) for t in (encoded.duration, encoded.present))
    return facts(said.embedding, said.firing, said.entropy, said.typicality, duration, present)


def _detached(support: Support) -> Support:
    def cut(encoded: Encoded) -> Encoded:
        return Encoded(*(getattr(encoded, f.name).detach() for f in fields(Encoded)))

    return replace(support, clean=cut(support.clean), views=cut(support.views))
