"""Metrics that compare generated samples with a reference set, with standard errors.

The functions in the table below take the samples first and the reference second, as tensors, and compute in float64.
Pairwise distances are computed in blocks to bound memory use. Statistics with a standard error are returned as a
:class:`Measurement`. The standard error always comes from a delete-a-block jackknife.

=======================  ==============================================  ==================
function                 compares                                        bias at finite N
=======================  ==============================================  ==================
:func:`frechet`          means and covariances                           upward, O(1/N)
:func:`kernel_distance`  moments up to the third                         none
:func:`mmd`              distributions at one length scale               none
:func:`sliced`           one-dimensional projections                     upward
:func:`neighbourhoods`   supports: precision, recall, density, coverage  depends on N, M, k
:func:`find_copies`      samples and their nearest training rows         none
=======================  ==============================================  ==================

Most functions in :mod:`scoresde.metrics.answers` take the truth first, and compare it with the answers of a conditional
model, that is, with several samples for each condition. :func:`kuiper` tests whether angles are uniform on the circle.
"""

from __future__ import annotations

from .answers import Ranks, coverage, difference, exact_gap, exact_loss, gap, psnr, ranks, seen, spread, ssim
from .circle import kuiper
from .copies import Copies, find_copies, nearest_line
from .gaussian import Moments, frechet, frechet_distance
from .kernel import kernel_distance, median_distance, mmd
from .measurement import Measurement, jackknife
from .neighbours import Neighbourhoods, neighbourhoods
from .transport import sliced, sliced_wasserstein

__all__ = [
    "Copies",
    "Measurement",
    "Moments",
    "Neighbourhoods",
    "Ranks",
    "coverage",
    "difference",
    "exact_gap",
    "exact_loss",
    "find_copies",
    "frechet",
    "frechet_distance",
    "gap",
    "jackknife",
    "kernel_distance",
    "kuiper",
    "median_distance",
    "mmd",
    "nearest_line",
    "neighbourhoods",
    "psnr",
    "ranks",
    "seen",
    "sliced",
    "sliced_wasserstein",
    "spread",
    "ssim",
]
