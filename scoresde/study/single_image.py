"""A data set of one picture: the smallest task for a generative model, whose success is visible at a glance.

The distribution is a single point, so that everything is known exactly: x0_hat is the picture at every noise level, the
flow goes straight to the picture from any noise, and all samples are equal. The progress of a network that learns the
picture is easy to watch. At low noise the picture is visible in the input; at high noise it must come from the weights
alone.

The picture is stored as an ordinary data set in an ordinary run folder. The data set repeats the picture, so that a
batch holds different noise levels.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError
from ..core.files import write_arrays
from ..core.limits import SEED, SIZE, TRAINED, checked
from ..core.opened import read_bytes, reason
from ..data.pictures import IMAGE_FORMATS
from ..run.config import TrainConfig

__all__ = ["EXAMPLE", "picture_config", "read_picture", "save_picture"]

EXAMPLE = Path(__file__).parents[1] / "assets" / "lighthouse.png"
COPIES = 64  # copies of the picture in the data set, more than a batch
FORMATS = (*IMAGE_FORMATS, "GIF", "PPM", "ICO", "TGA")  # without formats that external programs decode, such as EPS
SMALLEST = 8  # minimum number of pixels on the short side

# The network has few channels at levels with many pixels, and many channels at levels with few pixels. At high noise
# the picture is generated from the corners of the coarsest level outward.
NETWORK = {"network": "unet", "channels": 16, "multipliers": (1, 2, 4, 4, 4), "blocks": 1, "attention": ()}
STEPS, BATCH, RATE, AVERAGE = 800, 4, 3e-3, 0.99


@checked(size=SIZE)
def read_picture(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Read a picture in one of :data:`FORMATS`, as RGB on white, ``(3, H, W)``.

    The picture is shrunk to at most ``size`` pixels on its long side.

    Raises:
        DataError: If the picture cannot be read, or has fewer than 8 pixels on its short side.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(read_bytes(path)), formats=FORMATS) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is not a readable picture; use one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders can raise almost anything on damaged bytes
        raise DataError(f"{path} is not a readable picture: {reason(error)}") from None
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    if min(picture.size) < SMALLEST:
        raise DataError(
            f"{path} would be {picture.width} x {picture.height} pixels, but its short side needs at least {SMALLEST} "
            "pixels; use another picture, or a larger size",
            parameter="size",
        )
    return np.asarray(picture).transpose(2, 0, 1)


def save_picture(folder: Path, picture: npt.NDArray[np.uint8]) -> Path:
    """Write ``picture``, ``(3, H, W)``, as a data set into ``folder``, and return the path of the file."""
    arrays = {"x_train": np.repeat(picture[None], COPIES, axis=0), "x_test": picture[None]}
    return write_arrays(folder / "picture.npz", arrays)


@checked(steps=TRAINED, seed=SEED)
def picture_config(file: Path, sde: str, steps: int | None = None, seed: int = 0) -> TrainConfig:
    """The training configuration for one picture.

    Training on a 64 x 64 picture takes about two minutes on two CPU cores.
    """
    return TrainConfig(
        data=str(file), sde=sde, network_options=NETWORK, steps=steps or STEPS, batch=BATCH, lr=RATE, ema=AVERAGE,
        seed=seed,
    )  # fmt: skip
