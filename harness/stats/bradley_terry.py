"""Bradley-Terry strengths by maximum likelihood, with ties, soft outcomes and a cluster bootstrap over prompts.

Model (Davidson 1970, equation 2.2), with strengths t and tie parameter nu:

    P(i beats j) : P(tie) : P(j beats i)  =  exp((t_i - t_j) / 2) : nu : exp((t_j - t_i) / 2)

nu = 0 is Bradley-Terry: P(i beats j) = sigmoid(t_i - t_j). Elo = 400 / ln 10 * t, the anchor's set to a given value.
A soft outcome p in [0, 1] counts as p of a win and 1 - p of a loss. An outcome of exactly 0.5 is a tie when ties are
modelled (`ties=True`, for votes) and half a win and half a loss when they are not (for probabilities of a judge).

Where an arm (or group of arms) never loses to the rest, the likelihood has no maximum: its strength grows for ever.
Such a fit is flagged `separated` and made finite by half a win each way for every compared pair (the Jeffreys prior
of two arms): its Elo then says at least how far apart the arms are. Resamples that separate are treated alike.
The likelihood depends on the data only through sums over pairs, so all resamples are fitted at once: a Newton
iteration over a batch of small concave problems.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from harness.errors import UserError
from harness.stats import Bootstrap, Interval, Labels, cluster_codes, finite, resample_counts

ELO = 400 / np.log(10)  # Elo points per unit of log-odds
_NO_WIN = 1e-9  # a smaller share of a pair's comparisons counts as none
_BATCH = 2_000_000  # numbers in one batch of the Newton iteration


@dataclass(frozen=True)
class Tally:
    """What the likelihood needs: wins of i over j, of j over i, and ties, for each compared pair (i < j).

    arms: K labels. pairs: (M, 2) indices into arms. wins, losses, ties: (1 + resamples, M), the data in row 0.
    n: clusters (prompts). n_pair, n_arm: clusters behind each pair (M,) and each arm (K,).
    """

    arms: tuple[Hashable, ...]
    pairs: np.ndarray
    wins: np.ndarray
    losses: np.ndarray
    ties: np.ndarray
    n: int
    n_pair: np.ndarray
    n_arm: np.ndarray

    def win_rates(self) -> np.ndarray:
        """Share of wins of i over j, a tie counting half: (1 + resamples, M), NaN where a resample has no game."""
        games = self.wins + self.losses + self.ties
        return np.divide(self.wins + self.ties / 2, games, out=np.full_like(games, np.nan), where=games > 0)


@dataclass(frozen=True)
class BradleyTerry:
    """A fit. elo: (K,) in the order of `arms`; draws: (resamples, K) cluster-bootstrap refits; n prompts.

    nu: Davidson's tie parameter (0: no ties). separated: the maximum is infinite, see the module's docstring;
    groups: arms that beat one another in some chain, strongest group first (one group, unless separated).
    separated_share: share of resamples that separated.
    """

    arms: tuple[Hashable, ...]
    elo: np.ndarray
    draws: np.ndarray
    nu: float
    n: int
    separated: bool
    groups: tuple[tuple[Hashable, ...], ...]
    separated_share: float
    tally: Tally

    def index(self, arm: Hashable) -> int:
        """Place of `arm`. Raises UserError when it was not compared."""
        if arm not in self.arms:
            raise UserError(f"{arm}: not among the compared arms; choose one of {', '.join(map(str, self.arms))}")
        return self.arms.index(arm)

    def interval(self, arm: Hashable, level: float = 0.95) -> Interval:
        """Elo of `arm` relative to the anchor; n counts the prompts on which it was compared."""
        i = self.index(arm)
        return Bootstrap(float(self.elo[i]), self.draws[:, i], int(self.tally.n_arm[i])).interval(level)

    def difference(self, a: Hashable, b: Hashable) -> Bootstrap:
        """Elo of `a` minus Elo of `b`, with its resamples: ready for `harness.stats.non_inferiority` and the like."""
        i, j = self.index(a), self.index(b)
        n = int(min(self.tally.n_arm[i], self.tally.n_arm[j]))
        return Bootstrap(float(self.elo[i] - self.elo[j]), self.draws[:, i] - self.draws[:, j], n)


def fit_bradley_terry(
    arm_a: Labels,
    arm_b: Labels,
    outcome: ArrayLike,
    *,
    clusters: Labels | None = None,
    weights: ArrayLike | None = None,
    ties: bool = False,
    anchor: Hashable | None = None,
    anchor_elo: float = 0.0,
    seed: int = 0,
    n_resamples: int = 1000,
) -> BradleyTerry:
    """Fit Elo to comparisons: row r says that arm_a[r] is better than arm_b[r] with probability outcome[r].

    clusters: prompts, resampled whole (None: each row is one). weights: comparisons a row stands for.
    ties: model outcomes of exactly 0.5 as ties. anchor: the arm that gets `anchor_elo` (default: the first seen).
    Raises UserError for outcomes outside [0, 1], an arm against itself, an unknown anchor, or a comparison graph
    in several pieces, which it names.
    """
    tally = count_wins(
        arm_a, arm_b, outcome, clusters=clusters, weights=weights, ties=ties, seed=seed, n_resamples=n_resamples
    )
    arms, k = tally.arms, len(tally.arms)
    if anchor is not None and anchor not in arms:
        raise UserError(f"anchor {anchor}: not among the compared arms; choose one of {', '.join(map(str, arms))}")
    _require_connected(tally)
    separated = _separated(tally)
    prior = 0.5 * separated[:, None]
    wins, losses = tally.wins + prior, tally.losses + prior
    first = _maximise(tally.pairs, wins[:1], losses[:1], tally.ties[:1], np.zeros((1, k + 1)))
    step = max(1, _BATCH // max(len(tally.pairs), (k + 1) ** 2))
    blocks = [slice(s, s + step) for s in range(1, len(wins), step)]
    rest = [_maximise(tally.pairs, wins[b], losses[b], tally.ties[b], first) for b in blocks]
    fitted = np.concatenate([first, *rest])
    zero = 0 if anchor is None else arms.index(anchor)
    # Rounded to far below what matters: of equal arms neither is higher by the last bit.
    elo = np.round(ELO * (fitted[:, :k] - fitted[:, [zero]]) + anchor_elo, 9)
    return BradleyTerry(
        arms=arms,
        elo=elo[0],
        draws=elo[1:],
        nu=float(np.exp(fitted[0, k])) if tally.ties[0].any() else 0.0,
        n=tally.n,
        separated=bool(separated[0]),
        groups=tuple(sorted(_groups(tally, "strong"), key=lambda group: -elo[0][arms.index(group[0])])),
        separated_share=float(separated[1:].mean()) if n_resamples else 0.0,
        tally=tally,
    )


# ---------------------------------------------------------------- data


def count_wins(
    arm_a: Labels,
    arm_b: Labels,
    outcome: ArrayLike,
    *,
    clusters: Labels | None = None,
    weights: ArrayLike | None = None,
    ties: bool = False,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Tally:
    """Sum comparisons over pairs of arms, on the data and on every resample of clusters. Arguments: see above."""
    p = finite(outcome, "outcome")
    weight = np.ones(len(p)) if weights is None else finite(weights, "weights")
    if len(arm_a) != len(p) or len(arm_b) != len(p) or len(weight) != len(p):
        raise UserError("comparisons: arms, outcomes and weights differ in length; give one of each a row")
    for what, wrong in (("outcome", (p < 0) | (p > 1)), ("weight", weight < 0)):
        if wrong.any():
            row = int(np.argmax(wrong))
            value = p[row] if what == "outcome" else weight[row]
            raise UserError(f"{what}: row {row} is {value}; outcomes lie in [0, 1] and weights are not negative")
    labels = np.empty(2 * len(p), dtype=object)
    labels[:] = [*arm_a, *arm_b]
    codes, arms = pd.factorize(labels)
    a, b = codes[: len(p)], codes[len(p) :]
    if (codes < 0).any() or (a == b).any():
        row = int(np.argmax((a < 0) | (b < 0) | (a == b)))
        raise UserError(f"comparisons: row {row} compares {arm_a[row]} with {arm_b[row]}; name two different arms")

    cluster, n = cluster_codes(clusters, len(p))
    pair, pairs_flat = pd.factorize(np.minimum(a, b) * len(arms) + np.maximum(a, b))
    pairs = np.stack(np.divmod(pairs_flat, len(arms)), axis=1)
    tied = (p == 0.5) & ties
    p_first = np.where(a < b, p, 1 - p)
    m = len(pairs)
    parts = [weight * p_first * ~tied, weight * (1 - p_first) * ~tied, weight * tied]
    columns = sparse.csr_array(
        (np.concatenate(parts), (np.tile(cluster, 3), np.concatenate([pair + i * m for i in range(3)]))),
        shape=(n, 3 * m),
    )
    columns.eliminate_zeros()
    sums = [np.asarray(columns.sum(axis=0))[None]]
    sums += [np.asarray(counts.astype(float) @ columns) for counts in resample_counts(n, n_resamples, seed)]
    wins, losses, drawn = np.split(np.concatenate(sums), 3, axis=1)
    n_pair = np.bincount(np.unique(pair * n + cluster) // n, minlength=m)
    n_arm = np.bincount(np.unique(codes * n + np.tile(cluster, 2)) // n, minlength=len(arms))
    return Tally(tuple(arms), pairs, wins, losses, drawn, n, n_pair, n_arm)


def _groups(tally: Tally, connection: str) -> tuple[tuple[Hashable, ...], ...]:
    """Connected components of the data's graph: an edge where i beat j (strong), or was compared with it (weak)."""
    k, (i, j) = len(tally.arms), tally.pairs.T
    beats = np.zeros((k, k))
    beats[i, j] = tally.wins[0] + tally.ties[0]
    beats[j, i] = tally.losses[0] + tally.ties[0]
    games = beats + beats.T
    graph = sparse.csr_array(beats > _NO_WIN * games)
    count, label = connected_components(graph, directed=True, connection=connection)
    return tuple(tuple(tally.arms[x] for x in np.flatnonzero(label == c)) for c in range(count))


def _require_connected(tally: Tally) -> None:
    groups = _groups(tally, "weak")
    if len(groups) > 1:
        named = " and ".join("{" + ", ".join(map(str, group)) + "}" for group in groups)
        raise UserError(
            f"comparisons: the arms fall into {len(groups)} groups never compared with one another: {named}; "
            "add comparisons between the groups, or fit each alone"
        )


def _separated(tally: Tally) -> np.ndarray:
    """(1 + resamples,) where the likelihood may have no finite maximum.

    Without ties it has one just where every arm reaches every other along wins (Ford 1957). With ties, which link
    both ways, some cycle of wins is needed too, or the tie parameter can run off with the strengths.
    """
    k, (i, j) = len(tally.arms), tally.pairs.T
    least = _NO_WIN * (tally.wins + tally.losses + tally.ties)
    step = max(1, _BATCH // k**2)
    flags = []
    for rows in (slice(s, s + step) for s in range(0, len(tally.wins), step)):
        wins, losses, ties = (part[rows] > least[rows] for part in (tally.wins, tally.losses, tally.ties))
        beats = np.zeros((len(wins), k, k), dtype=np.float32)
        beats[:, i, j], beats[:, j, i] = wins, losses
        linked = beats.copy()
        linked[:, i, j] += ties
        linked[:, j, i] += ties
        cyclic = np.einsum("rkk->r", _closure(beats)) > 0
        flags.append(~(cyclic & (_closure(linked) > 0).all(axis=(1, 2))))
    return np.concatenate(flags)


def _closure(graph: np.ndarray) -> np.ndarray:
    """Paths of one edge or more between each two nodes of each graph (R, K, K)."""
    for _ in range(max(1, int(np.ceil(np.log2(graph.shape[1]))))):
        graph = np.minimum(graph + graph @ graph, 1)
    return graph


# ---------------------------------------------------------------- likelihood


def _outcome_terms(h: np.ndarray, log_nu: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For half differences h (R, M): P(win), P(tie) and the log of the normaliser, without overflow."""
    top = np.maximum(np.abs(h), log_nu)
    win, loss, tie = np.exp(h - top), np.exp(-h - top), np.exp(log_nu - top)
    total = win + loss + tie
    return win / total, tie / total, top + np.log(total)


def _maximise(
    pairs: np.ndarray, wins: np.ndarray, losses: np.ndarray, ties: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Newton's method with step halving, for R tallies at once: (R, K + 1) strengths (sum 0) and log nu."""
    (i, j), (rows, m), k = pairs.T, wins.shape, start.shape[1] - 1
    games, margin = wins + losses + ties, wins - losses
    total = games.sum(axis=1)
    has_ties = ties.any(axis=1)
    incidence = np.zeros((m, k))
    incidence[np.arange(m), i], incidence[np.arange(m), j] = 1, -1

    def unpack(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x[:, :k] @ incidence.T / 2, np.where(has_ties, x[:, k], -1e4)[:, None]

    def log_likelihood(x: np.ndarray) -> np.ndarray:
        h, log_nu = unpack(x)
        return (margin * h + ties * log_nu - games * _outcome_terms(h, log_nu)[2]).sum(axis=1)

    x = np.repeat(start, rows, axis=0) if len(start) != rows else start
    value = log_likelihood(x)
    for _ in range(100):
        h, log_nu = unpack(x)
        win, tie, _ = _outcome_terms(h, log_nu)
        score = win + tie / 2  # expected share of i, a tie counting half
        gradient = np.empty((rows, k + 1))
        gradient[:, :k] = (wins + ties / 2 - games * score) @ incidence
        gradient[:, k] = (ties - games * tie).sum(axis=1) * has_ties
        # Information: variances of the score and of the tie indicator, and their covariance, in each pair.
        variance = games * (win + tie / 4 - score**2)
        information = np.zeros((rows, k + 1, k + 1))
        information[:, i, j] = information[:, j, i] = -variance
        diagonal = np.arange(k)
        information[:, diagonal, diagonal] = variance @ np.abs(incidence)
        information[:, :k, :k] += (total / k**2)[:, None, None]  # pins the free level: strengths keep their sum
        information[:, :k, k] = information[:, k, :k] = (games * tie * (0.5 - score)) @ incidence
        information[:, k, k] = np.where(has_ties, (games * tie * (1 - tie)).sum(axis=1), 1)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        decrement = (gradient * step).sum(axis=1) / total
        for _ in range(60):
            trial = x + step
            new = log_likelihood(trial)
            worse = new < value - 1e-12 * np.abs(value)
            if not worse.any():
                break
            step[worse] /= 2
        x, value = trial, new
        if decrement.max() < 1e-15:
            return x
    raise RuntimeError(f"Bradley-Terry: no convergence after 100 Newton steps (decrement {decrement.max():.1e})")
