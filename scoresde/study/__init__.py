"""Studies of a trained run.

The module ``evaluate`` measures the quality of a run's samples by comparing features of the samples with features of
data. The module ``features`` computes these features, for example with a trained ``classifier``. The module ``answers``
compares the samples of a conditional model with the truth. The module ``report`` summarises the likelihoods of data
sets, ``bench`` compares solvers, and ``tune`` fits solvers to a run. The modules ``figures`` and ``compass`` compute
the values shown in the plots of a model, and ``single_image`` makes a data set from a single picture.
"""
