"""An adapter for networks that are called as ``f(x, t)`` instead of ``f(x, c, cond)``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core.condition import Condition
from ..core.errors import UsageError

__all__ = ["Labelled", "check_network"]

LABELS = (-5.0, 5.0)  # the range to which the noise label is clamped


class Labelled(nn.Module):
    """An adapter that calls a network ``f(x, t)`` with the noise label c in place of the time t.

    The parametrisation computes the label from the time. By default, the label is ``c = log(sigma/alpha) / 4``, clamped
    to lie within [-5, 5]. For :class:`~scoresde.VPSDE`, it ranges from about -1.7 to 1.3. The label increases with the
    noise level, but it is neither a time in [0, 1] nor a step index. A network that is trained with this package adapts
    to any label, but an embedding that was designed for step indices up to 1,000 separates noise levels better if the
    label has their range (``embed=(0, 999)``). Weights that were trained elsewhere work only with the label on which
    they were trained, so the parametrisation must provide this label. For example,
    :class:`scoresde.run.foreign.OriginalEps` provides ``c = 999 t``.

    Args:
        network: A module that is called as ``network(x, c)``, with ``x: (B, *event)`` and ``c: (B,)``, and returns a
            tensor with the same shape as ``x``.
        embed: How to transform the label before the call (default: not at all). Two numbers define a linear map from
            [-5, 5] to the range between them. A function is called with ``c: (B,)``. For example,
            ``lambda c: c[:, None]`` suits a network that expects a column.

    Raises:
        UsageError: If ``network`` is not a module or cannot be called as ``network(x, c)``, or if ``embed`` is invalid.
            Calling the adapter with a condition also raises this error, because the network cannot use a condition.

    >>> Labelled(nn.Bilinear(2, 1, 2), embed=lambda c: c[:, None])(torch.zeros(3, 2), torch.zeros(3)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self, network: nn.Module, embed: tuple[float, float] | Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        _check_module(network)
        known = _accepts(network, 2)
        if known is False:
            raise UsageError(
                f"Labelled calls its network as network(x, c), but {_named(network)}; define forward(self, x, c)"
            )
        if not (embed is None or callable(embed)):
            try:
                low, high = map(float, embed)
            except (TypeError, ValueError):
                low = high = math.nan
            if not math.isfinite(high - low) or low == high:
                raise UsageError(
                    f"embed must be two different numbers, such as (0, 999), or a function of the label, got {embed!r}"
                )
            embed = (low, high)
        self.network = network
        self.embed = embed

    def forward(self, x: Tensor, c: Tensor, cond: Condition | None = None) -> Tensor:
        """Return the network's output for ``x: (B, *event)`` and the noise label ``c: (B,)``."""
        if cond is not None:
            raise _blind(self)
        if isinstance(self.embed, tuple):
            low, high = self.embed
            c = low + (c - LABELS[0]) * ((high - low) / (LABELS[1] - LABELS[0]))
        elif self.embed is not None:
            c = self.embed(c)
        out: Tensor = self.network(x, c)
        return out


def check_network(network: object, classes: int = 0) -> None:
    """Check that a network can be called as ``network(x, c, cond)``, without calling it.

    Args:
        network: Any network.
        classes: The number of classes that the network must accept, or 0 for none.

    Raises:
        UsageError: If ``network`` is not a module, cannot be called with three arguments, or cannot use classes.
    """
    _check_module(network)
    assert isinstance(network, nn.Module)
    if classes and isinstance(network, Labelled):
        raise _blind(network)
    if _accepts(network, 3) is not False:
        return
    cure = "define forward(self, x, c, cond=None), where c is the noise label and cond is the condition"
    if _accepts(network, 2):
        cure = "wrap it as scoresde.nn.Labelled(network), or add a third argument: forward(self, x, c, cond=None)"
    raise UsageError(f"the network will be called as network(x, c, cond), but {_named(network)}; {cure}")


def _check_module(network: object) -> None:
    if isinstance(network, nn.Module):
        return
    if isinstance(network, type):
        raise UsageError(f"the network {network.__name__} is a class; pass an instance, {network.__name__}(...)")
    raise UsageError(f"the network must be a torch.nn.Module; got {network!r}")


def _blind(network: Labelled) -> UsageError:
    name = type(network.network).__name__
    return UsageError(
        f"Labelled({name}) passes only the noise label to its network, not a class or any other condition; train with "
        "cond='none', or define forward(self, x, c, cond=None) in the network and do not wrap it",
        parameter="cond",
        value="none",
    )


def _named(network: nn.Module) -> str:
    signature = _signature(network)
    return f"{type(_inner(network)).__name__} takes {signature or 'other arguments'}"


def _inner(network: nn.Module) -> nn.Module:
    """Return the network without its ``torch.compile`` and data-parallel wrappers."""
    for name in ("_orig_mod", "module"):
        inside = getattr(network, name, None)
        if isinstance(inside, nn.Module) and _open(_bare(network)):  # a wrapper accepts any number of arguments
            return _inner(inside)
    return network


def _bare(network: nn.Module) -> inspect.Signature | None:
    """Return the signature of ``forward``, or of ``__call__`` if that is overridden, or ``None`` if unknown."""
    own = type(network).__call__ is not nn.Module.__call__ and not isinstance(network, torch.jit.ScriptModule)
    try:
        return inspect.signature(network.__call__ if own else network.forward)
    except (TypeError, ValueError, AttributeError):
        return None


def _open(signature: inspect.Signature | None) -> bool:
    """Return whether a signature accepts any number of positional arguments."""
    kinds = () if signature is None else tuple(p.kind for p in signature.parameters.values())
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _signature(network: nn.Module) -> inspect.Signature | None:
    inner = _inner(network)
    found = _bare(inner)
    schema = getattr(getattr(inner, "forward", None), "schema", None)
    if found is not None or schema is None:
        return found
    # Traced code has a schema but no signature.
    kind, nothing = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    return inspect.Signature(
        [
            inspect.Parameter(a.name, kind, default=a.default_value if a.has_default_value() else nothing)
            for a in schema.arguments[1:]
        ]
    )


def _accepts(network: nn.Module, count: int) -> bool | None:
    """Return whether a network accepts ``count`` positional arguments, or ``None`` if this is unknown."""
    signature = _signature(network)
    if signature is None:
        return None
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
