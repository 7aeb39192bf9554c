"""Transferability: how well features that nobody has fine-tuned tell a task's classes apart.

Three measures, cheap beside a training: a linear probe (Alain & Bengio 2016), the vote of the nearest neighbours (as
Caron et al. 2021 judge features), and LogME (You et al. 2021), the evidence of a Bayesian linear model. Features are
(N, D), targets (N, K): 1 where a sample has the class. Plain arrays in, numbers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

Floats = NDArray[np.floating[Any]]

STRENGTHS = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Of the probe's penalty, from which one is chosen."""
FOLDS = 3
"""In which the penalty is chosen, within the training samples."""
NEIGHBOURS = 10
_ITERATIONS = 100
_TOLERANCE = 1e-5
"""Largest entry of the gradient at which the probe's fit ends."""
_EVIDENCE_STEPS, _EVIDENCE_TOLERANCE = 11, 1e-3
"""As in the LogME authors' implementation."""


# -------------------------------------------------------------------------------------------- linear probe


@dataclass(frozen=True)
class LinearProbe:
    """A linear map from features, as they come, to logits."""

    weight: NDArray[np.float64]
    """(D, K)."""
    bias: NDArray[np.float64]
    """(K,)."""
    several: bool
    """Whether a sample can have several classes, each with a probability of its own."""
    strength: float
    """Of the penalty it was fitted with."""

    def logits(self, features: Floats) -> NDArray[np.float64]:
        """(N, D) -> (N, K)."""
        return np.asarray(features @ self.weight + self.bias, np.float64)

    def probabilities(self, features: Floats) -> NDArray[np.float64]:
        """(N, D) -> (N, K)."""
        logits = self.logits(features)
        return np.asarray(expit(logits) if self.several else softmax(logits, axis=1))


def fit_probe(
    features: Floats, targets: Floats, groups: Sequence[str], *, several: bool = False, seed: int = 0
) -> LinearProbe:
    """The probe whose penalty predicts best what was left out, in folds of whole groups; fitted to all in the end.

    groups: N names; samples of one group (a drive, the pixels of an image) are never in two folds.
    """
    space = _Space.of(features)
    inner = space.inside(features)
    strength = _choose_strength(inner, targets, fold_of_groups(groups, FOLDS, seed=seed), several)
    return space.probe(_solve(inner, targets, strength, several), strength, several)


def fit_probe_at(features: Floats, targets: Floats, strength: float, *, several: bool = False) -> LinearProbe:
    """Logistic regression: the mean cross-entropy plus `strength` / 2 times the squared weights, by L-BFGS.

    The penalty is on the weights of standardised features; the bias has none.
    """
    space = _Space.of(features)
    return space.probe(_solve(space.inside(features), targets, strength, several), strength, several)


def fold_of_groups(groups: Sequence[str], folds: int, *, seed: int = 0) -> NDArray[np.intp]:
    """(N,) the fold of each sample, 0..folds - 1; groups are shuffled and dealt out."""
    names, owner = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names)) % folds
    return np.asarray(fold[owner], np.intp)


@dataclass(frozen=True)
class _Space:
    """Standardised features; turned into the training samples' own span where these are fewer than the features."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    basis: NDArray[np.float64] | None
    """(D, N): the penalty doesn't change under a rotation, and the best weights lie in the span."""

    @classmethod
    def of(cls, features: Floats) -> _Space:
        mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        scale = np.where(scale > 1e-6 * max(float(scale.max(initial=0.0)), 1e-30), scale, np.inf)  # constant: unused
        if len(features) >= features.shape[1]:
            return cls(mean, scale, None)
        return cls(mean, scale, np.linalg.qr(((features - mean) / scale).T)[0])

    def inside(self, features: Floats) -> NDArray[np.float64]:
        standard = (features - self.mean) / self.scale
        return np.asarray(standard if self.basis is None else standard @ self.basis, np.float64)

    def probe(self, solution: NDArray[np.float64], strength: float, several: bool) -> LinearProbe:
        """solution: (D + 1, K) inside, the bias last."""
        weight = solution[:-1] if self.basis is None else self.basis @ solution[:-1]
        weight = weight / self.scale[:, None]
        return LinearProbe(weight, solution[-1] - self.mean @ weight, several, strength)


def _choose_strength(
    features: NDArray[np.float64], targets: Floats, fold: NDArray[np.intp], several: bool
) -> float:
    """From strong to weak, each fit beginning where the one before it ended."""
    losses = np.zeros(len(STRENGTHS))
    for index in np.unique(fold).tolist():
        learn, judge = fold != index, fold == index
        if not learn.any():
            return STRENGTHS[len(STRENGTHS) // 2]  # one group only: nothing can be left out
        solution: NDArray[np.float64] | None = None
        for place, strength in enumerate(STRENGTHS):
            solution = _solve(features[learn], targets[learn], strength, several, start=solution)
            losses[place] += _loss(features[judge] @ solution[:-1] + solution[-1], targets[judge], several)[0]
    return STRENGTHS[int(losses.argmin())]


def _solve(
    features: NDArray[np.float64],
    targets: Floats,
    strength: float,
    several: bool,
    *,
    start: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """(D + 1, K): weights, and the bias last."""
    count, shape = len(features), (features.shape[1] + 1, targets.shape[1])

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        solution = flat.reshape(shape)
        weight = solution[:-1]
        loss, slope = _loss(features @ weight + solution[-1], targets, several)
        gradient = np.empty(shape)
        gradient[:-1] = features.T @ slope / count + strength * weight
        gradient[-1] = slope.mean(axis=0)
        return loss / count + strength / 2 * float((weight**2).sum()), gradient.ravel()

    begin = np.zeros(shape) if start is None else start
    options = {"maxiter": _ITERATIONS, "gtol": _TOLERANCE, "ftol": 0.0}
    found = minimize(objective, begin.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, np.float64).reshape(shape)


def _loss(logits: NDArray[np.float64], targets: Floats, several: bool) -> tuple[float, NDArray[np.float64]]:
    """Summed cross-entropy of logits (N, K), and its derivative (N, K)."""
    if several:
        loss = np.logaddexp(0, logits) - targets * logits
        return float(loss.sum()), expit(logits) - targets
    shares = log_softmax(logits, axis=1)
    return -float((targets * shares).sum()), np.exp(shares) * targets.sum(axis=1, keepdims=True) - targets


# ---------------------------------------------------------------------------------------------- neighbours


def vote_of_neighbours(
    features: Floats, targets: Floats, queries: Floats, *, count: int = NEIGHBOURS
) -> NDArray[np.float64]:
    """Share of each class among the `count` nearest samples by cosine: queries (M, D) -> (M, K)."""
    known, asked = _unit(features), _unit(queries)
    count = min(count, len(known))
    shares = np.empty((len(asked), targets.shape[1]))
    step = max(1, 8_000_000 // len(known))
    for start in range(0, len(asked), step):
        near = known @ asked[start : start + step].T
        nearest = np.argpartition(-near, count - 1, axis=0)[:count]
        shares[start : start + step] = targets[nearest].mean(axis=0)
    return shares


def _unit(vectors: Floats) -> NDArray[np.float32]:
    """Of length 1, (N, D)."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


# --------------------------------------------------------------------------------------------------- LogME


def log_evidence(features: Floats, targets: Floats) -> float:
    """LogME (You et al. 2021): the mean over classes of a linear model's largest log evidence, per sample.

    Each class's column of `targets` is regressed on the features, and the precisions of the weights' prior and of
    the noise are found by fixed-point steps (as in You et al. 2022). A number to rank by: it has no unit.
    """
    sigma, turned, rest = _decompose(np.asarray(features, np.float64), np.asarray(targets, np.float64))
    columns = zip(turned.T, rest, strict=True)
    return float(np.mean([_evidence(sigma, squares, left, len(features)) for squares, left in columns]))


def _decompose(
    features: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Squared singular values (r,), squared targets along them (r, K), squared rest of each target (K,)."""
    wide = len(features) < features.shape[1]
    sigma, vectors = np.linalg.eigh(features @ features.T if wide else features.T @ features)
    kept = sigma > sigma[-1] * 1e-12
    sigma, vectors = sigma[kept], vectors[:, kept]
    along = vectors.T @ targets if wide else (vectors.T @ (features.T @ targets)) / np.sqrt(sigma)[:, None]
    squares = along**2
    return sigma, squares, np.maximum((targets**2).sum(axis=0) - squares.sum(axis=0), 0.0)


def _evidence(sigma: NDArray[np.float64], squares: NDArray[np.float64], rest: float, count: int) -> float:
    """Of one target, per sample; alpha: precision of the weights, beta: of the noise."""
    alpha = beta = 1.0
    evidence = -np.inf
    for _ in range(_EVIDENCE_STEPS):
        ratio = alpha / beta
        gamma = float((sigma / (sigma + ratio)).sum())
        weights = float((sigma * squares / (ratio + sigma) ** 2).sum())
        residual = float((squares / (1 + sigma / ratio) ** 2).sum()) + rest
        alpha, beta = gamma / (weights + 1e-5), (count - gamma) / (residual + 1e-5)
        evidence = (
            len(sigma) * np.log(alpha) + count * np.log(beta) - float(np.log(alpha + beta * sigma).sum())
            - beta * residual - alpha * weights - count * np.log(2 * np.pi)
        ) / (2 * count)  # fmt: skip
        if abs(alpha / beta - ratio) <= _EVIDENCE_TOLERANCE * ratio:
            break
    return float(evidence)
