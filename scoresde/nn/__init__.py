"""Networks, which are independent of the SDE: ``forward(x, c, cond)`` returns a tensor with the same shape as ``x``.

``x`` has shape ``(B, *event)``. ``c: (B,)`` is the noise label of the parametrisation (a quarter of the log
noise-to-signal ratio, clamped). ``cond`` is a :class:`~scoresde.Condition` with one row for each row of ``x``, or
``None``; its ``label`` holds the classes. Any ``nn.Module`` with this signature can be used instead, and
:class:`Labelled` adapts a network that is called as ``f(x, t)``. :class:`Classifier` is a different kind of network: it
sees data without noise, and its features are used to compare samples with data.
"""

from .classifier import Classifier
from .embedding import NoiseEmbedding
from .labelled import Labelled
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "Classifier", "Labelled", "NoiseEmbedding", "UNet"]
