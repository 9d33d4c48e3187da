"""Networks. They know no SDE: ``forward(x, c, cond)`` returns the shape of ``x: (B, *event)``.

``c: (B,)`` is the noise label of the parametrisation (a quarter of the log noise-to-signal ratio, clamped), ``cond`` a
:class:`~scoresde.Condition` with a row for each of ``x``, or ``None``; classes are its ``label``. Any ``nn.Module``
with this call can take their place, and :class:`Labelled` gives it to one that is called ``f(x, t)``.
:class:`Classifier` is none of these: it sees data without noise, and its features tell samples from data.
"""

from .classifier import Classifier
from .embedding import NoiseEmbedding
from .labelled import Labelled
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "Classifier", "Labelled", "NoiseEmbedding", "UNet"]
