"""Scaling fits L = E + A / N^alpha (+ B / D^beta where models saw different numbers of tokens), with intervals, or a plain no.

For given exponents the law is linear in E, A, B, so only the exponents are searched on a grid (variable projection), with
Huber's loss on relative residuals; the best point is polished by Levenberg-Marquardt steps on all constants. Intervals are
percentiles over residual bootstraps. An exponent is called identified only when its interval says something.

*Source:* the law and Huber's delta of Hoffmann et al. 2022 (arXiv 2203.15556); intervals because its published ones were too
narrow (Besiroglu et al. 2024, arXiv 2404.10102); variable projection instead of IsoFLOP parabolas, which are biased even
without noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HUBER_DELTA = 1e-3  # of relative residuals, at least; Hoffmann et al.
HUBER_SPREADS = 1.345  # delta in robust standard deviations: 95 % efficient if the noise is normal after all
EXPONENTS = (0.01, 2.0)  # searched range
GRID = {1: 96, 2: 20}  # points an exponent, for laws of one and of two exponents
REWEIGHTINGS, STEPS, STUCK = 8, 60, 1e6  # a sample whose damping has grown so far has found its minimum
BOOTSTRAPS = 300
LEVELS = (0.025, 0.975)
LEAST_SIZES = 4  # distinct sizes; three constants go through any three points
CONSTANTS_A_GROUPING = 3  # of what is missed at whole sizes, or at whole numbers of tokens: E and a term of its own
POINTS_A_CONSTANT = 2  # distinct points that identify: where fewer agree with a law, it is too often by chance
WIDEST = 3.0  # highest over lowest exponent of an interval that still says something
SAME_TOKENS = 1.02  # models whose token counts differ by less than this factor saw the same


@dataclass(frozen=True)
class Fit:
    """A fitted law and what its bootstraps gave."""

    law: np.ndarray  # (1 + 2e,): E, A, alpha (, B, beta), for sizes divided by `scale`
    samples: np.ndarray  # (bootstraps, 1 + 2e)
    scale: np.ndarray  # what N (and D) were divided by: the geometric means of the data
    n_points: int  # distinct sizes (and numbers of tokens) that it was fitted to

    @property
    def exponents(self) -> np.ndarray:
        return self.law[2::2]

    def predict(self, *sizes: np.ndarray) -> np.ndarray:
        """Losses at sizes N (and tokens D)."""
        return _law(self.law, self._scaled(sizes))

    def interval(self, *sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The 95 % band of the fitted curve at these sizes."""
        low, high = np.quantile(self.drawn(*sizes), LEVELS, axis=0)
        return low, high

    def drawn(self, *sizes: np.ndarray) -> np.ndarray:
        """Every bootstrap's losses at these sizes (bootstraps, sizes)."""
        return _law(self.samples, self._scaled(sizes))

    def exponent_interval(self, index: int = 0) -> tuple[float, float]:
        low, high = np.quantile(self.samples[:, 2 + 2 * index], LEVELS)
        return float(low), float(high)

    @property
    def all_identified(self) -> bool:
        """Whether the data say something of every exponent, and so of E, which is what they leave."""
        return all(self.identified(index) for index in range(len(self.exponents)))

    @property
    def floor_interval(self) -> tuple[float, float]:
        """Of E."""
        low, high = np.quantile(self.samples[:, 0], LEVELS)
        return float(low), float(high)

    def identified(self, index: int = 0) -> bool:
        """Whether the data say anything of an exponent: its interval is inside the searched range and not too wide.

        And there are points enough: a few can lie on a law by chance, and its interval is narrow just then.
        """
        low, high = self.exponent_interval(index)
        inside = low > 1.05 * EXPONENTS[0] and high < 0.95 * EXPONENTS[1]
        return self.has_points_enough and inside and high / low <= WIDEST

    @property
    def has_points_enough(self) -> bool:
        return self.n_points >= POINTS_A_CONSTANT * len(self.law)

    def named_constants(self) -> dict[str, float]:
        """E, A and B in the units of the data: nats, and nats times size to the exponent."""
        values = {"E": float(self.law[0])}
        for name, constant, exponent, scale in zip("AB", self.law[1::2], self.exponents, self.scale, strict=False):
            values[name] = float(constant * scale**exponent)
        return values

    def _scaled(self, sizes: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.stack([np.asarray(size, float) / s for size, s in zip(sizes, self.scale, strict=True)])


def fit(
    losses: np.ndarray, sizes: np.ndarray, tokens: np.ndarray | None = None, bootstraps: int = BOOTSTRAPS, seed: int = 0
) -> Fit | None:
    """Fit losses (models,) against sizes (models,), and against tokens (models,) if given and not all the same.

    Models of one size (and number of tokens) are one point, their mean: what the law misses there, it misses in all of them,
    so they tell it no better than one. None where there are fewer distinct sizes than the law can be told from.
    """
    variables = [np.asarray(sizes, float)]
    if tokens is not None and varies(tokens):
        variables.append(np.asarray(tokens, float))
    (sizes, *others), losses = _points(np.stack(variables), np.asarray(losses, float))
    variables = [sizes, *others]
    if len(np.unique(sizes)) < LEAST_SIZES or len(losses) < LEAST_SIZES + 2 * (len(variables) - 1):
        return None
    scale = np.array([np.exp(np.log(variable).mean()) for variable in variables])
    features = np.stack(variables) / scale[:, None]
    n_free = 2 * len(variables) + 1
    start = _grid_search(losses, features)
    first = _polished(losses[None], features, start[None], HUBER_DELTA)[0]
    spread = 1.4826 * float(np.median(np.abs(_law(first, features) / losses - 1)))
    delta = max(HUBER_DELTA, HUBER_SPREADS * spread * np.sqrt(len(losses) / max(1, len(losses) - n_free)))
    best = _polished(losses[None], features, first[None], delta)[0]
    drawn = _resampled(losses, _law(best, features), features, bootstraps, seed)
    samples = _polished(drawn, features, np.tile(best, (bootstraps, 1)), delta)
    return Fit(best, samples, scale, len(losses))


def _points(features: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct columns of the features (variables, models), and the mean loss at each."""
    distinct, which = np.unique(features, axis=1, return_inverse=True)
    return distinct, np.bincount(which, losses) / np.bincount(which)


def varies(tokens: np.ndarray) -> bool:
    """Whether models saw numbers of tokens different enough to learn from."""
    return float(np.max(tokens) / np.min(tokens)) > SAME_TOKENS


def _law(values: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Losses (..., models) of laws `values` (..., 1 + 2e): E, then A and alpha, then B and beta."""
    terms = values[..., 1::2, None] * features ** -values[..., 2::2, None]
    return values[..., :1] + terms.sum(-2)


def _resampled(
    losses: np.ndarray, predicted: np.ndarray, features: np.ndarray, bootstraps: int, seed: int
) -> np.ndarray:
    """Losses drawn anew (bootstraps, points): the fitted ones plus relative residuals with random signs and places.

    Where points share their size or their tokens, what the law misses at a size or at a number of tokens is drawn as a whole,
    and what is left of each point by itself: a size that no law meets is one surprise, and not one a point.
    """
    residuals, rng = losses / predicted - 1, np.random.default_rng(seed)
    drawn = np.zeros((bootstraps, len(losses)))
    for group in (np.unique(feature, return_inverse=True)[1] for feature in features):
        if 1 < group.max() + 1 < len(losses):
            missed = np.bincount(group, residuals) / np.bincount(group)
            residuals = residuals - missed[group]
            drawn += _shuffled(missed, CONSTANTS_A_GROUPING, bootstraps, rng)[:, group]
    n_free = 2 * len(features) + 1
    return predicted * (1 + drawn + _shuffled(residuals, n_free, bootstraps, rng))


def _shuffled(residuals: np.ndarray, n_free: int, bootstraps: int, rng: np.random.Generator) -> np.ndarray:
    """Residuals (bootstraps, n) with random signs and places, widened.

    Residuals of n points around a law with p constants are too small by about sqrt((n - p) / n), and a spread told from n - p
    residuals is itself uncertain (Student's t over the normal quantile); both are put right.
    """
    from scipy.stats import norm, t

    n = len(residuals)
    freedom = max(1, n - n_free)
    widening = np.sqrt(n / freedom) * t.ppf(LEVELS[1], freedom) / norm.ppf(LEVELS[1])
    return widening * residuals[rng.integers(0, n, (bootstraps, n))] * rng.choice([-1.0, 1.0], (bootstraps, n))


def _grid_search(losses: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The best law (1 + 2e,) with exponents on a grid."""
    n_exponents = len(features)
    axis = np.geomspace(*EXPONENTS, GRID[n_exponents])
    tried = np.stack(np.meshgrid(*[axis] * n_exponents, indexing="ij"), -1).reshape(-1, n_exponents)
    constants, cost = _solve(losses, features, tried)
    best = cost.argmin()
    law = np.empty(1 + 2 * n_exponents)
    law[0], law[1::2], law[2::2] = constants[best, 0], constants[best, 1:], tried[best]
    return law


def _polished(losses: np.ndarray, features: np.ndarray, start: np.ndarray, delta: float) -> np.ndarray:
    """Laws (samples, 1 + 2e) after Levenberg-Marquardt steps on Huber's loss of relative residuals, every sample by itself."""
    law, damping = start.copy(), np.full(len(start), 1e-3)
    cost = _huber(_law(law, features) / losses - 1, delta).sum(-1)
    for _ in range(STEPS):
        residual = _law(law, features) / losses - 1
        weights = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-15))
        slopes = _slopes(law, features) / losses[..., None]  # (samples, models, 1 + 2e)
        weighted = slopes * weights[..., None]
        gram = weighted.swapaxes(-1, -2) @ slopes
        diagonal = np.einsum("sii->si", gram)
        damped = gram + (damping[:, None] * diagonal + 1e-15)[..., None] * np.eye(law.shape[-1])
        step = np.linalg.solve(damped, (weighted * residual[..., None]).sum(-2)[..., None])[..., 0]
        tried = np.maximum(law - step, 0.0)
        tried[:, 2::2] = np.clip(tried[:, 2::2], *EXPONENTS)
        new = _huber(_law(tried, features) / losses - 1, delta).sum(-1)
        better = new < cost
        law, cost = np.where(better[:, None], tried, law), np.where(better, new, cost)
        damping = np.where(better, damping / 4, damping * 6).clip(1e-12, 1e12)
        if (damping > STUCK).all():
            break
    return law


def _slopes(law: np.ndarray, features: np.ndarray) -> np.ndarray:
    powers = features ** -law[:, 2::2, None]  # (samples, e, models)
    found = np.ones((len(law), features.shape[-1], law.shape[-1]))
    found[..., 1::2] = powers.swapaxes(-1, -2)
    found[..., 2::2] = (-law[:, 1::2, None] * powers * np.log(features)).swapaxes(-1, -2)
    return found


def _huber(residual: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size < delta, size**2 / 2, delta * (size - delta / 2))


def _solve(losses: np.ndarray, features: np.ndarray, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Huber regressions for all tried exponents (tries, e) at once: constants (tries, 1 + e) >= 0 and costs (tries,)."""
    powers = (features ** -exponents[..., None]).swapaxes(-1, -2)  # (tries, models, e)
    design = np.concatenate([np.ones((*powers.shape[:-1], 1)), powers], -1) / losses[:, None]  # of relative losses
    weights = np.ones(design.shape[:-1])
    for _ in range(REWEIGHTINGS):
        constants = _nonnegative(design, weights)
        residual = (design * constants[..., None, :]).sum(-1) - 1
        weights = np.minimum(1.0, HUBER_DELTA / np.maximum(np.abs(residual), 1e-15))
    return constants, _huber(residual, HUBER_DELTA).sum(-1)


def _nonnegative(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least squares with constants >= 0 (..., constants) of a design (..., models, constants)."""
    size = design.shape[-1]
    weighted = design * weights[..., None]
    gram = (weighted.swapaxes(-1, -2) @ design).reshape(-1, size, size)
    gram = gram + 1e-12 * np.eye(size) * gram[:, :1, :1]
    right = weighted.sum(-2).reshape(-1, size)
    solution = np.linalg.solve(gram, right[..., None])[..., 0]
    wrong = (solution < 0).any(-1)
    if wrong.any():
        solution[wrong] = _best_subset(gram[wrong], right[wrong])
    return solution.reshape(*design.shape[:-2], size)


def _best_subset(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The best solutions with some constants held at zero and none below it."""
    best, best_value = np.zeros(right.shape), np.full(len(right), np.inf)
    for kept in _subsets(right.shape[-1]):
        solution = np.zeros(right.shape)
        solution[:, kept] = np.linalg.solve(gram[:, kept[:, None], kept], right[:, kept, None])[..., 0]
        value = np.einsum("si,sij,sj->s", solution, gram, solution) - 2 * (solution * right).sum(-1)
        better = (solution >= 0).all(-1) & (value < best_value)
        best, best_value = np.where(better[:, None], solution, best), np.where(better, value, best_value)
    return best


def _subsets(size: int) -> list[np.ndarray]:
    masks = range(1, 2**size)
    return [np.array([i for i in range(size) if mask >> i & 1]) for mask in masks]
