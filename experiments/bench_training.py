"""The speed of training: `fit` beside a plain loop, diffusers and the code of Song et al. (2021), in one process.

    python experiments/bench_training.py                        # fit and a plain loop of the same network
    python experiments/bench_training.py --original FOLDER      # also the code in a checkout of score_sde_pytorch
    python experiments/bench_training.py --processes            # one and two processes, with the same batch
    python experiments/bench_training.py --memory               # the peak memory of each loop
    python experiments/bench_training.py --gpu                  # on a GPU: bf16 and torch.compile (ten minutes)
    python experiments/bench_training.py --gpu --toy            # the same on a CPU, at a size that takes a minute

All networks have the same numbers of channels and blocks, about 9 million parameters, and see colour images of
32 x 32 pixels. diffusers (if it is
installed) trains its UNet2DModel as in its example for unconditional training, and the original code trains its
DDPM++ network, each with its own loss, optimiser and average. The loops take turns, one after the other in each round,
so that a slow moment of the machine meets all of them. A ratio is the median over the rounds of the ratio of the times
of a round; above 1, `fit` is faster.

Goals: `fit` at least 0.98 times as fast as the plain loop, and at least 1.15 times as fast as the two others; two
processes of one thread at least 1.8 times as fast as one process of one thread, and at least 0.95 times as fast as one
process of two threads; on a GPU, bf16 and torch.compile at least 2.5 times as fast as the original in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import Dataset, TrainConfig, fit
from scoresde.core.threads import work
from scoresde.nn import UNet
from scoresde.train import loop
from scoresde.train.averages import EMA

UNET: dict[str, Any] = {"channels": 64, "multipliers": (1, 2, 2), "blocks": 3, "attention": (1,)}
TOY: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": ()}
Step = Callable[[], object]


def images(count: int, size: int) -> Tensor:
    """Return random 8-bit images. Their content does not change how long a step takes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


class Fitted:
    """`fit` in a thread of its own, which waits before each step until it is called."""

    def __init__(self, x: Tensor, batch: int, device: str, options: dict[str, Any], **settings: Any) -> None:
        self._go, self._done, self._error = threading.Semaphore(0), threading.Semaphore(0), list[BaseException]()
        config = TrainConfig(
            preset="small", network_options=options, steps=10**6, batch=batch, sample_every=10**6,
            validate_every=10**7, **settings,
        )  # fmt: skip
        steps = loop.steps

        def gated(*args: Any, **named: Any) -> Iterator[Any]:
            for record in steps(*args, **named):
                self._done.release()
                self._go.acquire()
                yield record

        def train() -> None:
            loop.steps = gated
            try:
                fit(config, data=Dataset.of(x.numpy()), save=False, quiet=True, device=device)
            except BaseException as error:
                self._error.append(error)
                self._done.release()

        threading.Thread(target=train, daemon=True).start()
        self._done.acquire()
        loop.steps = steps

    def __call__(self) -> None:
        self._go.release()
        self._done.acquire()
        if self._error:
            raise self._error[0]


def plain(x: Tensor, batch: int, device: str, network: nn.Module) -> Step:
    """A training loop for the noise as people write it, with gradient clipping and an average of the weights."""
    network.to(device)
    average = [p.detach().clone() for p in network.parameters()]
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        rows = x[torch.randint(0, len(x), (batch,))].to(device).float() / 127.5 - 1
        t, noise = torch.rand(batch, device=device), torch.randn_like(rows)
        alpha = torch.exp(-0.25 * t.square() * 19.9 - 0.05 * t).reshape(-1, 1, 1, 1)
        loss = (network(alpha * rows + (1 - alpha.square()).sqrt() * noise, t) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(network.parameters()), 1e-4)

    return step


def diffusers(x: Tensor, batch: int, device: str, toy: bool) -> Step:
    """The loop of diffusers' example for unconditional training."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    sizes = (32, 32) if toy else (64, 128, 128)
    kinds = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")[: len(sizes)]
    network = UNet2DModel(
        sample_size=x.shape[-1], in_channels=3, out_channels=3, layers_per_block=1 if toy else 3,
        block_out_channels=sizes, norm_num_groups=8 if toy else 32, down_block_types=kinds,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
    ).to(device)  # fmt: skip
    scheduler, average = DDPMScheduler(1000), EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    print(f"diffusers: {size(network)}")

    def step() -> None:
        rows = x[torch.randint(0, len(x), (batch,))].to(device).float() / 127.5 - 1
        noise = torch.randn_like(rows)
        t = torch.randint(0, 1000, (batch,), device=device)
        loss = nn.functional.mse_loss(network(scheduler.add_noise(rows, noise, t), t).sample, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.step(network.parameters())

    return step


def original(x: Tensor, batch: int, device: str, folder: Path, toy: bool) -> Step:
    """The training step of the original code, on its DDPM++ network."""
    import types

    sys.path.insert(0, str(folder))
    # The original compiles CUDA code when it is imported. DDPM++ without FIR filters does not use it.
    stub: Any = types.ModuleType("op")
    stub.upfirdn2d = stub.FusedLeakyReLU = stub.fused_leaky_relu = None
    sys.modules["op"] = stub
    import losses
    import sde_lib
    from configs.vp.cifar10_ddpmpp_continuous import get_config
    from models import ncsnpp  # noqa: F401  # registers the network
    from models import utils as networks
    from models.ema import ExponentialMovingAverage

    config = get_config()
    config.device = torch.device(device)
    config.data.image_size = x.shape[-1]
    config.model.nf = 16 if toy else 64
    config.model.ch_mult = (1, 2) if toy else (1, 2, 2)
    config.model.num_res_blocks = 1 if toy else 3
    config.model.dropout = 0.0  # as in the other loops
    network = networks.get_model(config.model.name)(config).to(device)
    print(f"original: {size(network)}")
    average = ExponentialMovingAverage(network.parameters(), decay=config.model.ema_rate)
    optimiser = losses.get_optimizer(config, network.parameters())
    state = {"model": network, "optimizer": optimiser, "ema": average, "step": 0}
    sde = sde_lib.VPSDE(config.model.beta_min, config.model.beta_max, config.model.num_scales)
    train = losses.get_step_fn(
        sde, train=True, optimize_fn=losses.optimization_manager(config), reduce_mean=config.training.reduce_mean,
        continuous=config.training.continuous, likelihood_weighting=config.training.likelihood_weighting,
    )  # fmt: skip

    def step() -> None:
        rows = x[torch.randint(0, len(x), (batch,))].to(device).float() / 127.5 - 1
        train(state, rows)

    return step


def size(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} million parameters"


def timed(step: Step, device: str, count: int) -> float:
    """Return the seconds that some steps take."""
    began = time.monotonic()
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - began


def compare(loops: dict[str, Step], batch: int, device: str, rounds: int, count: int) -> dict[str, float]:
    """Time the loops in turns, print their images per second and the ratios, and return the images per second."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        for name, step in loops.items():
            taken = timed(step, device, count)
            if number:  # the first round warms up
                seconds[name].append(taken / count)
    first = next(iter(loops))
    speed = {name: batch / median(taken) for name, taken in seconds.items()}
    print(f"\n| loop | images/s | speed of {first} over it |\n|---|---|---|")
    for name, taken in seconds.items():
        ratio = median(other / own for own, other in zip(seconds[first], taken, strict=True))
        print(f"| {name} | {speed[name]:.1f} | {ratio:.2f} |", flush=True)
    return speed


def made(name: str, x: Tensor, args: argparse.Namespace, device: str) -> Step:
    """Build a loop by its name."""
    options = TOY if args.toy else UNET
    if name == "plain":
        network = UNet(channels_in=3, **options)
        print(f"plain and fit: {size(network)}")
        return plain(x, args.batch, device, network)
    if name == "diffusers":
        return diffusers(x, args.batch, device, args.toy)
    if name == "original":
        return original(x, args.batch, device, args.original, args.toy)
    return Fitted(x, args.batch, device, options, **json.loads(name.partition(" ")[2] or "{}"))


def names(args: argparse.Namespace) -> list[str]:
    import importlib.util

    found = ["fit", "plain"]
    found += ["diffusers"] if importlib.util.find_spec("diffusers") else []
    found += ["original"] if args.original is not None else []
    for name, there in (("diffusers", "diffusers" in found), ("original", "original" in found)):
        if not there:
            print(f"{name} is left out: it is not there")
    return found


def processes(args: argparse.Namespace) -> None:
    """Time the same global batch in one process of one thread, one of two threads, and two of one thread."""
    here = Path(__file__).resolve()
    speed: dict[str, list[float]] = {}
    kinds = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread": (2, 1)}
    for _ in range(args.rounds):
        for name, (count, threads) in kinds.items():
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else [
                sys.executable
            ]  # fmt: skip
            command = [*launch, str(here), "--worker", "--batch", str(args.batch), *(["--toy"] if args.toy else [])]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            speed.setdefault(name, []).append(float(out.split()[-1]))
    print("| processes and threads | images/s |\n|---|---|")
    for name, found in speed.items():
        print(f"| {name} | {median(found):.1f} |")
    one, threaded, two = (median(found) for found in speed.values())
    told = f"{two / one:.2f} times one process of one thread, {two / threaded:.2f} times one of two threads"
    print(f"\ntwo processes: {told}")


def worker(args: argparse.Namespace) -> None:
    """Train for a few steps, alone or as one of several processes, and print the images per second of all."""
    x, times = images(256, args.size), list[float]()
    steps = loop.steps

    def watched(*given: Any, **named: Any) -> Iterator[Any]:
        for record in steps(*given, **named):
            times.append(time.monotonic())
            yield record

    loop.steps = watched
    config = TrainConfig(
        preset="small", network_options=TOY if args.toy else UNET, steps=8, batch=args.batch, sample_every=10**6,
        validate_every=10**6,
    )  # fmt: skip
    fit(config, data=Dataset.of(x.numpy()), save=False, quiet=True)
    if os.environ.get("RANK", "0") == "0":
        print(args.batch * (len(times) - 3) / (times[-1] - times[2]))


def memory(args: argparse.Namespace) -> None:
    """Print the peak memory of each loop, each in a process of its own."""
    print("| loop | peak memory |\n|---|---|")
    for name in names(args):
        given = [] if args.original is None else ["--original", str(args.original)]
        more = [*given, "--batch", str(args.batch), *(["--toy"] if args.toy else [])]
        command = [sys.executable, str(Path(__file__).resolve()), "--peak", name, *more]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"| {name} | {float(out.split()[-1]):,.0f} MiB |", flush=True)


def gpu(args: argparse.Namespace) -> None:
    """Compare bf16 and torch.compile on a GPU (or, with --toy, on a CPU), and print how much of the GPU is used."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.toy:
        sys.exit("there is no GPU here; use --toy to run this on a CPU")
    x = images(256 if args.toy else 4096, args.size)
    fast: list[dict[str, Any]] = [
        {"precision": "bf16", "compile": True, "channels_last": "yes"},
        {"precision": "bf16", "channels_last": "yes"},
        {"precision": "bf16"},
        {"precision": "float32", "compile": True},
        {"precision": "float32"},
    ]
    # Compiling takes minutes on a CPU.
    loops = ["fit " + json.dumps(settings) for settings in fast if not (args.toy and settings.get("compile"))]
    loops += [name for name in names(args) if name != "fit"]
    speed = compare({name: made(name, x, args, device) for name in loops}, args.batch, device, args.rounds, args.count)
    network = UNet(channels_in=3, **(TOY if args.toy else UNET))
    row, label = torch.zeros(1, 3, args.size, args.size), torch.zeros(1)
    with torch.no_grad():
        one = 3 * work(network, lambda: network(row, label))  # a backward pass is as much work as two forward passes
    best = max(speed, key=lambda name: speed[name] if name.startswith("fit") else 0.0)
    told = f"{one * speed[best] / 1e12:.2f} TFLOP/s"
    if args.peak_flops:
        told += f", {one * speed[best] / args.peak_flops:.1%} of {args.peak_flops / 1e12:,.0f} TFLOP/s"
    print(f"\nfastest: {best}, {told}")
    if "original" in speed:
        print(f"over the original in float32: {speed[best] / speed['original']:.2f} (goal: 2.5)")
    if device == "cuda":
        print(f"peak memory of all loops together: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, help="a checkout of yang-song/score_sde_pytorch")
    parser.add_argument("--batch", type=int, default=0, help="batch size (default: 16, or 256 with --gpu)")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--count", type=int, default=0, help="steps of a loop in each round (default: 1, or 20)")
    parser.add_argument("--size", type=int, default=0, help="height and width of the images (default: 32)")
    parser.add_argument("--threads", type=int, default=0, help="number of threads (default: all cores)")
    parser.add_argument("--toy", action="store_true", help="tiny networks and images, to see that the script runs")
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--peak-flops", type=float, default=0.0, help="peak speed of the GPU, such as 989e12")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    large = args.gpu and not args.toy
    args.batch = args.batch or (256 if large else 16)
    args.count = args.count or (20 if large else 1)
    args.size = args.size or (8 if args.toy else 32)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.worker:
        return worker(args)
    if args.peak:
        step = made(args.peak, images(256, args.size), args, "cpu")
        timed(step, "cpu", 3)
        return print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if args.processes:
        return processes(args)
    if args.memory:
        return memory(args)
    if args.gpu:
        return gpu(args)
    x = images(256, args.size)
    print(f"{torch.get_num_threads()} threads, batch {args.batch}")
    speed = compare({n: made(n, x, args, "cpu") for n in names(args)}, args.batch, "cpu", args.rounds, args.count)
    average, skip = EMA(UNet(channels_in=3, **(TOY if args.toy else UNET))), torch.zeros(())
    taken = median(timed(lambda: average.update(skip), "cpu", 10) / 10 for _ in range(5))
    share = taken * speed["fit"] / args.batch
    print(f"\nthe average of the weights takes {1e3 * taken:.2f} ms, {share:.2%} of a step of fit")
    return None


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the threads of fit are still waiting for their next step
