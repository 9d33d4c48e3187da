"""How a network is computed: in which precision, in which memory layout, and whether it is compiled.

None of these concerns the mathematics around the network. The weights, the paths, the losses and the solvers keep
their own precision, which is float32 or float64. Only the network itself may be computed with bfloat16, a float with 8
significant bits, by the automatic casts of PyTorch (Micikevicius et al. 2018, arXiv:1710.03740; bfloat16 needs no
scaling of the loss). Its output is returned in the precision of its input.

In the layout "channels last", the channels of a pixel are neighbours in memory. The convolutions of some processors
are faster with it, and those of others are slower. The results differ by rounding.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from .dropout import Dropout, draws_by_dropout

__all__ = ["LAYOUTS", "PRECISIONS", "Execution", "faster_with_channels_last", "lay_out", "precision_on", "shareable"]

PRECISIONS = ("auto", "float32", "bf16")
LAYOUTS = ("auto", "yes", "no")
TRIALS = 3  # steps that are timed with each layout
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # keyed by the number of axes


@dataclass(frozen=True)
class Execution:
    """How a network is computed.

    Args:
        precision: ``float32`` to compute in the precision of the weights, or ``bf16``.
        compiled: Whether the network is compiled by ``torch.compile`` at its first call. This takes from seconds to
            minutes, needs a C++ compiler, and changes results by rounding.
        channels_last: Whether 2-D and 3-D events are laid out with the channels last.
    """

    precision: str = "float32"
    compiled: bool = False
    channels_last: bool = False

    def __call__(self, network: nn.Module, x: Tensor, *others: Any) -> Any:
        """Return ``network(x, *others)``, computed in this way.

        Raises:
            UsageError: If the network is to be compiled, but the compiler fails.
        """
        if not self.compiled and getattr(network, "_compiled_call_impl", None) is not None:
            network = network._call_impl  # type: ignore[assignment]  # another model has compiled it
        if self == _PLAIN:
            return network(x, *others)
        if self.channels_last and x.ndim in _LAST:
            x = x.contiguous(memory_format=_LAST[x.ndim])
        cast = torch.autocast(x.device.type, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()
        with cast:
            out = _compiled(network, x, *others) if self.compiled else network(x, *others)
        return out.contiguous() if self.channels_last and isinstance(out, Tensor) else out

    @property
    def told(self) -> dict[str, Any]:
        """The settings that change results, without those of an ordinary network."""
        plain = vars(_PLAIN)
        return {name: value for name, value in vars(self).items() if value != plain[name]}


_PLAIN = Execution()


def _compiled(network: nn.Module, *args: Any) -> Any:
    if getattr(network, "_compiled_call_impl", None) is None:  # a copy of a network is not compiled
        _keep_buffers()
        network.compile()
    try:
        return network(*args)
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        told = str(error).strip().splitlines()[0]
        raise UsageError(
            f"the network {type(network).__name__} could not be compiled ({told}); leave out compile",
            parameter="compile",
            value=False,
        ) from error


def _keep_buffers() -> None:
    """Compile for several backward passes through one forward pass, as in a likelihood.

    By default, a compiled backward pass overwrites what it has read. The caches on the disk are left out because
    PyTorch 2.13 takes code from them that overwrites even if this is off, so that the second pass is silently wrong.
    """
    import torch._functorch.config as traced
    import torch._inductor.config as generated

    traced.donated_buffer = traced.enable_autograd_cache = generated.fx_graph_cache = False


def shareable(network: nn.Module, *, training: bool) -> bool:
    """Return whether several threads may call a network at once.

    This is false for own networks, and for networks that compute blocks again, are compiled or, in training, draw
    dropout masks, because their calls may change something that the threads share.
    """
    drops = training and any(isinstance(module, Dropout) and module.p for module in network.modules())
    again = any(hasattr(type(module), "computed_once") for module in network.modules())
    compiled = getattr(network, "_compiled_call_impl", None) is not None
    return draws_by_dropout(network) and not (drops or again or compiled)


def precision_on(device: torch.device, dtype: torch.dtype, asked: str) -> str:
    """Return the precision in which to train a network on a device: ``float32`` or ``bf16``.

    The precision ``auto`` is ``bf16`` on a GPU that computes with it, for float32 weights, and otherwise ``float32``.

    Raises:
        UsageError: If the precision is unknown, or does not suit the weights.
    """
    if asked not in PRECISIONS:
        raise UsageError(
            f"precision is {asked!r}, but must be one of {', '.join(PRECISIONS)}", parameter="precision", value="auto"
        )
    if asked == "auto":
        able = device.type == "cuda" and dtype == torch.float32 and torch.cuda.is_bf16_supported(False)
        return "bf16" if able else "float32"
    if asked == "bf16" and dtype != torch.float32:
        told = str(dtype).removeprefix("torch.")
        raise UsageError(
            f"precision='bf16' needs weights in float32, but dtype is {told}; leave out one of the two",
            parameter="precision",
            value="float32",
        )
    return asked


def lay_out(network: nn.Module, channels_last: bool) -> None:
    """Lay out the weights of the convolutions of a network, with the channels last or first."""
    # Some kernels return gradients in the other layout. The training step copies them.
    warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")
    for parameter in network.parameters():
        if parameter.ndim in _LAST and min(parameter.shape[:2]) > 1:
            kind = _LAST[parameter.ndim] if channels_last else torch.contiguous_format
            parameter.data = parameter.data.contiguous(memory_format=kind)


def faster_with_channels_last(network: nn.Module, step: Callable[[Execution], None]) -> bool:
    """Return whether ``step``, which computes the network, is faster with channels last. Both layouts take turns."""
    if not any(parameter.ndim in _LAST for parameter in network.parameters()):
        return False
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(TRIALS + 1):
        for last, taken in seconds.items():
            lay_out(network, last)
            began = time.monotonic()
            step(Execution(channels_last=last))
            if number:  # the first is a warm-up
                taken.append(time.monotonic() - began)
    return median(seconds[True]) < median(seconds[False])
