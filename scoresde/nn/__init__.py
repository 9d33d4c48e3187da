"""Networks that work with any SDE and are called as ``network(x, c, cond)``.

The input ``x`` and, by default, the output have shape ``(B, *event)``. The noise label ``c: (B,)`` comes from the
parametrisation (by default, ``log(sigma/alpha)/4``, clamped to lie within [-5, 5]). The condition ``cond`` is a
:class:`~scoresde.Condition` with one row for each row of ``x``, or ``None``. Any other ``nn.Module`` with this
signature can be used as well, and :class:`Labelled` adapts a network that is called as ``f(x, t)``.

:class:`Classifier` is a different kind of network. Its input is data without noise, and its features are used to
compare samples with data.
"""

from .classifier import Classifier
from .embedding import NoiseEmbedding
from .labelled import Labelled
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "Classifier", "Labelled", "NoiseEmbedding", "UNet"]
