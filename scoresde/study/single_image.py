"""A data set made from a single picture. Learning this data set is the simplest task for a generative model.

The data distribution is a single point, so all exact results are known: the ideal estimate x0_hat is the picture at
every noise level, the probability flow leads straight to the picture from any noise, and all samples are identical. It
is easy to see how well a network has learned the picture. At low noise, the picture is visible in the network's input.
At high noise, the network must generate the picture from its weights alone.

The picture is stored as an ordinary data set in an ordinary run folder. The data set contains many copies of the
picture, so that each batch contains several copies with different noise levels.
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
COPIES = 64  # number of copies of the picture in the data set, larger than the batch size
FORMATS = (*IMAGE_FORMATS, "GIF", "PPM", "ICO", "TGA")  # no formats that require an external decoder, such as EPS
SMALLEST = 8  # minimum number of pixels on the short side

# The network has few channels at high resolutions and many channels at low resolutions. At high noise, the input says
# nothing about position, which the network can infer only from the zero padding at the borders of its feature maps.
NETWORK = {"network": "unet", "channels": 16, "multipliers": (1, 2, 4, 4, 4), "blocks": 1, "attention": ()}
STEPS, BATCH, RATE, AVERAGE = 800, 4, 3e-3, 0.99


@checked(size=SIZE)
def read_picture(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Read a picture file and return the picture as an RGB array ``(3, H, W)``, composited on white.

    The file must be in one of the :data:`FORMATS`. A picture whose long side exceeds ``size`` pixels is shrunk until
    this side has ``size`` pixels.

    Raises:
        DataError: If the picture cannot be read, or its short side has fewer than 8 pixels after shrinking.
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
            f"{path} is {picture.width} x {picture.height} pixels when its long side is limited to {size}, but its "
            f"short side must be at least {SMALLEST}; use another picture, or a larger size if the original "
            "picture is larger",
            parameter="size",
        )
    return np.asarray(picture).transpose(2, 0, 1)


def save_picture(folder: Path, picture: npt.NDArray[np.uint8]) -> Path:
    """Write ``picture``, an array ``(3, H, W)``, to ``folder`` as a data set. Return the path to the file."""
    arrays = {"x_train": np.repeat(picture[None], COPIES, axis=0), "x_test": picture[None]}
    return write_arrays(folder / "picture.npz", arrays)


@checked(steps=TRAINED, seed=SEED)
def picture_config(file: Path, sde: str, steps: int | None = None, seed: int = 0) -> TrainConfig:
    """Return the training configuration for a data set made from a single picture.

    With the default number of steps, training on a 64 x 64 picture takes about two minutes on two CPU cores.
    """
    return TrainConfig(
        data=str(file), sde=sde, network_options=NETWORK, steps=steps or STEPS, batch=BATCH, lr=RATE, ema=AVERAGE,
        seed=seed,
    )  # fmt: skip
