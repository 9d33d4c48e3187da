"""A comparison of the learned score with an exact score at each noise level.

The exact score is known for a mixture of Gaussians (:class:`scoresde.GaussianMixture`) and for any finite set of
points, such as the *training set* (:mod:`scoresde.model.empirical`). A network that matched the score of the training
set exactly would reproduce the training data. A network that generalises follows the score of the training set at high
noise and departs from it at low noise.

In training, data stored as levels are dequantised, so that each point becomes a cell of width b. Under noise wider than
b, a cell behaves like a Gaussian with the same variance, b^2/12. For the exact score, each training point is therefore
replaced by a Gaussian with this variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codec import Codec, Levels, as_affine
from ..core.errors import DataError, UsageError
from ..core.limits import COUNT, SEED, Range, checked
from ..core.noise import Noise
from ..core.shapes import flat
from ..data import DataInfo, Dataset, eight_gaussians
from ..data.rows import Stored
from ..model.empirical import TrainingSet
from ..model.estimate import Denoiser
from ..model.mixture import GaussianMixture
from ..run.run import Run
from ..sde.base import SDE

__all__ = ["Compass", "ScoreFields", "exact_score", "known_mixture", "measure", "score_grid"]

FURTHEST = 14.0  # scores are compared up to this |log-SNR|, because the log-SNR is infinite where alpha or sigma is 0


def known_mixture(info: DataInfo, codec: Codec, sde: SDE) -> GaussianMixture | None:
    """Return the Gaussian mixture that generates the data, in model units, or ``None`` if it is not known."""
    if info.source != "8gaussians":
        return None
    means, std = eight_gaussians()
    covariance = torch.diag((std / as_affine(codec, "the exact score").scale.expand(2)).square())
    return GaussianMixture(sde, codec.to_model(means), covariances=covariance.expand(8, 2, 2))


def exact_score(info: DataInfo, codec: Codec, sde: SDE, train: Tensor) -> tuple[Denoiser, str, str | None]:
    """Build a model whose score is the exact score of a data set.

    Args:
        info: Description of the data.
        codec: The map from data units to model units.
        sde: The SDE.
        train: The training set in data units, ``(K, *event)``.

    Returns:
        The model, a description of its score, and a note on how to interpret a comparison with this score. The note is
        ``None`` if none is needed.
    """
    mixture = known_mixture(info, codec, sde)
    if mixture is not None:
        return mixture, "the exact score of the density from which the data are drawn", None
    points, width = codec.to_model(train.double(), noise=torch.full(train.shape, 0.5, dtype=torch.float64)), 0.0
    if isinstance(codec.levels, Levels):
        width = float(torch.as_tensor(codec.levels.width).mean() / as_affine(codec, "the exact score").scale.mean())
    note = (
        "This score minimises the training loss. A network that matched it exactly would reproduce the training set.\n"
        "A network that generalises departs from this score at low noise."
    )
    return TrainingSet(sde, points, width / math.sqrt(12)), f"the score of the {len(train):,} training samples", note


# ----------------------------------------------------------------------------------------------------------- compass


@dataclass(frozen=True)
class Compass:
    """The differences between a model's score and the exact score at L noise levels.

    The columns of a tensor of shape ``(L, 3)`` are the 10 % quantile, the mean and the 90 % quantile over the samples.

    Attributes:
        log_snr: Noise levels as log-SNR, float64 ``(L,)``, decreasing.
        cosine: Cosine of the angle between the two scores, ``(L, 3)``.
        error: The relative error ``|model - exact| / |exact|``, ``(L, 3)``. In the second column, the mean is replaced
            by ``sqrt(mean |model - exact|^2 / mean |exact|^2)``.
        against: Description of the exact score.
        note: A note on how to interpret the comparison, or ``None``.
        n: Number of held-out samples on which the scores were compared.
    """

    log_snr: Tensor
    cosine: Tensor
    error: Tensor
    against: str
    note: str | None
    n: int = 0


@checked(n=COUNT, levels=Range(2, 10_000), seed=SEED)
def measure(run: Run, data: Dataset, *, n: int = 256, levels: int = 25, seed: int = 0) -> Compass:
    """Compare the learned score with the exact score at noisy held-out samples, for several noise levels.

    Args:
        run: The trained run. If the run is conditioned on one class, only the training data and held-out data of this
            class are used.
        data: The data that the run was trained on.
        n: Maximum number of held-out samples.
        levels: Number of noise levels. The levels are evenly spaced in log-SNR over the model's time interval.
        seed: Seed for the noise.

    Raises:
        UsageError: If the model has no score.
        DataError: If the run is conditioned on one class, and the training data or the held-out data have no samples of
            this class.
    """
    if not run.model.domain.has_score:
        raise UsageError(f"{run.folder} was trained on coupled (data, noise) pairs, so it has no score to compare")
    if run.needs:
        names = " + ".join(map(str, run.codec.space.parts))
        raise UsageError(
            f"the exact score cannot be computed in the space {names!r}, whose coordinates depend on the "
            "condition of each row; train without this space"
        )
    sde, info = run.model.domain.sde, run.info
    if isinstance(data.train, Stored):
        raise DataError(
            f"the comparison is with the exact score of all training samples, which must be in memory, but those of "
            f"{info.name} are too large and stay in their files; use a run that was trained on fewer samples"
        )
    train, rows = data.train[data.trains & data.whole], data.test
    label = None if run.condition is None else run.condition.label
    only = label.cpu() if label is not None and len(label) == 1 and int(label) < len(info.classes) else None
    if only is not None and data.train_labels is not None and data.test_labels is not None:
        mine = data.trains & data.whole & (data.train_labels == only)
        train, rows = data.train[mine], rows[data.test_labels == only]
        if not len(train) or not len(rows):
            raise DataError(
                f"the comparison requires training and held-out samples of the given class, but {info.name} has "
                f"{len(train)} of this class for training and {len(rows)} held out; use a run that is not conditioned "
                "on a class"
            )
    exact, against, note = exact_score(info, run.codec, sde, train)
    rows = rows[:n]
    noise = Noise.of(len(rows), seed)
    u = noise.uniform(info.shape, stream="dequantise", dtype=torch.float64)
    x0 = run.codec.to_model(rows.double(), noise=u)
    low, high = run.model.domain.interval("sample")
    ends = sde.log_snr(torch.tensor([low, high], dtype=torch.float64)).clamp(-FURTHEST, FURTHEST).tolist()
    log_snr = torch.linspace(ends[0], ends[1], levels, dtype=torch.float64)
    cosines, errors = [], []
    for i, t in enumerate(sde.t_of_log_snr(log_snr).clamp(low, high)):
        x = sde.perturb(x0, t, noise.normal(tuple(x0.shape[1:]), i, "solver", torch.float64))
        with torch.no_grad():
            learned = run.model(x.to(run.device, run.dtype), t.to(run.device)).eps.cpu()
        # The score is -eps_hat / sigma. The factor -1 / sigma changes neither the angle nor the ratio.
        a, b = flat(learned).double(), flat(exact(x, t).eps)
        off, size = (a - b).norm(dim=1), b.norm(dim=1)
        cosines.append(_band((a * b).sum(1) / (a.norm(dim=1) * size)))
        errors.append(_band(off / size, float((off.square().mean() / size.square().mean()).sqrt())))
    return Compass(log_snr, torch.stack(cosines), torch.stack(errors), against, note, len(rows))


def _band(values: Tensor, middle: float | None = None) -> Tensor:
    """Return the 10 % quantile, the mean or ``middle``, and the 90 % quantile of ``values``."""
    low, high = torch.quantile(values, torch.tensor([0.1, 0.9], dtype=values.dtype)).tolist()
    return torch.tensor([low, float(values.mean()) if middle is None else middle, high], dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------ fields


@dataclass(frozen=True)
class ScoreFields:
    """Scores on a grid in the plane at T times, in the plot units of :mod:`scoresde.study.figures`.

    Attributes:
        t: Times, float64 ``(T,)``.
        x, y: Coordinates of the grid points along the two axes, each ``(G,)``.
        learned: The learned score, ``(T, 2, G, G)``, which is the gradient of the log density in the plot units.
        exact: The exact score of the noisy data, ``(T, 2, G, G)``, or ``None`` if the density of the data is unknown.
        density: The exact density of the noisy data, ``(T, G, G)``, up to a constant factor at each time, or ``None``
            if the density of the data is unknown.
        points: Noisy held-out data, ``(T, N, 2)``.
    """

    t: Tensor
    x: Tensor
    y: Tensor
    learned: Tensor
    exact: Tensor | None
    density: Tensor | None
    points: Tensor


@checked(size=Range(2, 4096), seed=SEED)
def score_grid(run: Run, data: Dataset, t: Tensor, *, size: int = 61, seed: int = 0) -> ScoreFields:
    """Evaluate the learned score, and the exact score if it is known, on a grid around the data.

    Args:
        run: A run trained on points in the plane.
        data: The data that the run was trained on.
        t: Times, ``(T,)``.
        size: Number of grid points along each axis.
        seed: Seed for the noise that is added to the held-out points.

    Raises:
        UsageError: If the data are not points in the plane, or the model has no score.
    """
    info, sde = run.info, run.model.domain.sde
    if info.shape != (2,):
        raise UsageError(
            f"a score field requires points in the plane, but {info.name} contains {info.kind}s of shape "
            f"{' x '.join(map(str, info.shape))}; use `scoresde plot compass`, which works in any number of dimensions"
        )
    if not run.model.domain.has_score:
        raise UsageError(f"{run.folder} was trained on coupled (data, noise) pairs, so it has no score to draw")
    units, rows = as_affine(run.codec, "a score field"), data.test[:1000].double()
    low, high = rows.amin(0), rows.amax(0)
    centre, half = (low + high) / 2, 0.62 * float((high - low).max())
    ticks = torch.linspace(-half, half, size, dtype=torch.float64)
    x, y = centre[0] + ticks, centre[1] + ticks
    nodes = units.to_model(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2))
    mixture = known_mixture(info, run.codec, sde)
    noise, x0 = Noise.of(len(rows), seed), units.to_model(rows)
    learned, exact, density, points = [], [], [], []
    for s in t:
        alpha, sigma = sde.coefficients(s)
        spread = torch.hypot(alpha, sigma)
        # The plot shows decode(x_t / spread). The gradient in these units is the score times spread / scale.
        factor = spread / units.scale
        at = nodes * spread
        with torch.no_grad():
            found = run.model(at.to(run.device, run.dtype), s.to(run.device)).score.cpu().double()
        learned.append((found * factor).T.reshape(2, size, size))
        points.append(units.to_data(sde.perturb(x0, s, noise.normal((2,), 0, "prior", torch.float64)) / spread))
        if mixture is not None:
            exact.append((mixture(at, s).score * factor).T.reshape(2, size, size))
            density.append(mixture.log_prob(at, s).exp().reshape(size, size))
    truth = torch.stack(exact) if exact else None
    shade = torch.stack(density) if density else None
    return ScoreFields(t, x, y, torch.stack(learned), truth, shade, torch.stack(points))
