"""How far is what was generated from what was wanted? Distances between sets of samples, each with its error.

Every metric takes samples first and the reference second, as tensors, computes in float64, and holds a bounded part of
any table of pairs. A metric with an error returns a :class:`Measurement`; its error is that of a delete-a-block
jackknife over both sets, whatever the metric.

=======================  ==============================================  ==================
function                 compares                                        bias at finite N
=======================  ==============================================  ==================
:func:`frechet`          means and covariances                           upwards, as 1/N
:func:`kernel_distance`  moments to the third                            none
:func:`mmd`              everything at one length                        none
:func:`sliced`           every projection                                upwards
:func:`neighbourhoods`   supports: precision, recall, density, coverage  depends on N, M, k
:func:`find_copies`      each sample with its nearest training row       none
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
