"""Metrics: distances between generated samples and a reference set, each with a standard error.

Every metric takes the samples first and the reference second, as tensors. It computes in float64, and works through the
table of pairwise distances in blocks, so that its use of memory is bounded. A metric that estimates its error returns a
:class:`Measurement`. The error always comes from a delete-a-block jackknife over both sets.

=======================  ==============================================  ==================
function                 compares                                        bias at finite N
=======================  ==============================================  ==================
:func:`frechet`          means and covariances                           upward, as 1/N
:func:`kernel_distance`  moments up to the third                         none
:func:`mmd`              all differences at one length scale             none
:func:`sliced`           one-dimensional projections                     upward
:func:`neighbourhoods`   supports: precision, recall, density, coverage  depends on N, M, k
:func:`find_copies`      each sample and its nearest training row        none
=======================  ==============================================  ==================
"""

from __future__ import annotations

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
    "find_copies",
    "frechet",
    "frechet_distance",
    "jackknife",
    "kernel_distance",
    "median_distance",
    "mmd",
    "nearest_line",
    "neighbourhoods",
    "sliced",
    "sliced_wasserstein",
]
