"""Draw the picture of `scoresde demo single-image` with Pillow: a lighthouse on a cliff at dusk.

    python experiments/draw_lighthouse.py                     # scoresde/assets/lighthouse.png, 64 x 64
    python experiments/draw_lighthouse.py --size 512 --out lighthouse.png

The picture is drawn at 1024 x 1024 pixels and then averaged down to the requested size, to smooth the edges. It is
dedicated to the public domain (CC0 1.0); see scoresde/assets/LIGHTHOUSE-LICENSE.md.
"""

from __future__ import annotations

import argparse
import random
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

CANVAS = 1024
HORIZON = 0.66  # fraction of the height
ASSET = Path(__file__).parents[1] / "scoresde" / "assets" / "lighthouse.png"

SKY = [
    (0.0, (27, 24, 72)),
    (0.28, (66, 45, 114)),
    (0.48, (168, 76, 122)),
    (0.6, (238, 128, 92)),
    (0.66, (255, 196, 112)),
]
SEA = [(0.66, (122, 94, 128)), (0.74, (58, 66, 120)), (1.0, (18, 24, 62))]
CLIFF, FACET, RIDGE, GRASS = (28, 24, 40), (37, 31, 49), (72, 50, 70), (44, 58, 56)
ROAD = (255, 214, 160)
WHITE, SHADE, RED, RED_SHADE, LAMP = (246, 238, 228), (176, 160, 186), (206, 52, 56), (138, 32, 62), (255, 240, 170)


def mix(a: tuple[int, ...], b: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def gradient(stops: list[tuple[float, tuple[int, ...]]], at: float) -> tuple[int, ...]:
    """Interpolate the colour at height ``at`` between the two nearest stops."""
    for (low, first), (high, second) in pairwise(stops):
        if at <= high:
            return mix(first, second, max(0.0, (at - low) / (high - low)))
    return stops[-1][1]


def glow(image: Image.Image, draw_on, blur: float, strength: float = 1.0) -> Image.Image:
    """Add to an image the light that ``draw_on`` draws on a black image, after blurring it."""
    light = Image.new("RGB", image.size)
    draw_on(ImageDraw.Draw(light))
    light = light.filter(ImageFilter.GaussianBlur(blur * CANVAS)).point(lambda v: round(v * strength))
    return ImageChops.screen(image, light)


def p(*numbers: float) -> list[float]:
    """Convert fractions of the side length to pixels."""
    return [v * CANVAS for v in numbers]


def ellipse(draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, fill: tuple[int, ...]) -> None:
    draw.ellipse(p(x - rx, y - ry, x + rx, y + ry), fill=fill)


def backdrop() -> Image.Image:
    image = Image.new("RGB", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(image)
    for row in range(CANVAS):
        at = row / CANVAS
        draw.line((0, row, CANVAS, row), fill=gradient(SKY if at < HORIZON else SEA, at))
    return image


def stars(draw: ImageDraw.ImageDraw) -> None:
    for x, y, size in (
        (0.07, 0.07, 9),
        (0.4, 0.085, 6),
        (0.52, 0.035, 8),
        (0.58, 0.215, 6),
        (0.1, 0.3, 6),
        (0.93, 0.28, 6),
    ):
        ellipse(draw, x, y, size / 1024, size / 1024, (255, 250, 232))


def cloud(
    draw: ImageDraw.ImageDraw, x: float, y: float, length: float, colour: tuple[int, ...], lit: tuple[int, ...]
) -> None:
    """Draw a flat cloud as a row of ellipses, lit from below."""
    for shift, tint in ((0.0, lit), (-0.012, colour)):
        for k in range(9):
            share = k / 8
            radius = length * (0.05 + 0.085 * (1 - (2 * share - 1) ** 2) * (0.75 + 0.25 * ((k * 5) % 3) / 2))
            ellipse(draw, x + (share - 0.5) * length, y + shift - radius * 0.4, radius * 1.7, radius * 0.62, tint)


def sea(draw: ImageDraw.ImageDraw, rng: random.Random, moon: float) -> None:
    """Draw the reflection of the moon on the water, and ripples."""
    for _ in range(95):
        depth = rng.random() ** 1.3
        y = HORIZON + 0.012 + depth * (1 - HORIZON)
        x = moon + rng.gauss(0, 0.02 + 0.05 * depth)
        half = 0.012 + 0.035 * depth * rng.random()
        draw.rounded_rectangle(p(x - half, y, x + half, y + 0.008 + 0.006 * depth), CANVAS * 0.004, fill=ROAD)
    for _ in range(46):
        depth = rng.random()
        y, x = HORIZON + 0.015 + depth * (1 - HORIZON), rng.random()
        half = 0.02 + 0.05 * depth
        draw.rounded_rectangle(p(x - half, y, x + half, y + 0.006), CANVAS * 0.003, fill=gradient(SEA, y - 0.07))


def cliff(draw: ImageDraw.ImageDraw) -> None:
    rock = [
        (0, 0.60),
        (0.09, 0.585),
        (0.2, 0.60),
        (0.36, 0.605),
        (0.44, 0.64),
        (0.46, 0.72),
        (0.52, 0.76),
        (0.53, 0.84),
        (0.61, 0.89),
        (0.63, 0.96),
        (0.7, 1.0),
        (0, 1.0),
    ]
    draw.polygon([tuple(p(*point)) for point in rock], fill=CLIFF)
    lit = [
        (0.36, 0.605),
        (0.44, 0.64),
        (0.46, 0.72),
        (0.52, 0.76),
        (0.53, 0.84),
        (0.61, 0.89),
        (0.63, 0.96),
        (0.7, 1.0),
        (0.62, 1.0),
        (0.56, 0.93),
        (0.47, 0.88),
        (0.46, 0.8),
        (0.4, 0.75),
        (0.39, 0.67),
    ]
    draw.polygon([tuple(p(*point)) for point in lit], fill=RIDGE)
    for facet in (
        (0.05, 0.7, 0.17, 0.68, 0.21, 0.8, 0.1, 0.86),
        (0.24, 0.72, 0.33, 0.69, 0.37, 0.8, 0.29, 0.87),
        (0.14, 0.9, 0.27, 0.9, 0.33, 1.0, 0.16, 1.0),
        (0.38, 0.86, 0.44, 0.91, 0.5, 1.0, 0.4, 1.0),
    ):
        draw.polygon(p(*facet), fill=FACET)
    grass = [
        (0, 0.595),
        (0.09, 0.58),
        (0.2, 0.594),
        (0.36, 0.6),
        (0.44, 0.638),
        (0.4, 0.648),
        (0.3, 0.63),
        (0.15, 0.635),
        (0, 0.64),
    ]
    draw.polygon([tuple(p(*point)) for point in grass], fill=GRASS)
    draw.polygon(p(0.155, 0.592, 0.25, 0.603, 0.29, 0.603, 0.25, 0.618, 0.16, 0.604), fill=(132, 110, 108))  # a path


def foam(draw: ImageDraw.ImageDraw) -> None:
    for x, y, half in ((0.655, 0.985, 0.05), (0.63, 0.935, 0.03), (0.56, 0.86, 0.028), (0.5, 0.785, 0.02)):
        draw.rounded_rectangle(p(x, y, x + 2 * half, y + 0.012), CANVAS * 0.006, fill=(206, 200, 222))


def lighthouse(draw: ImageDraw.ImageDraw, x: float, top: float, foot: float) -> None:
    wide, narrow, bands = 0.072, 0.046, 5

    def half(share: float) -> float:
        return narrow + (wide - narrow) * share

    for k in range(bands):
        a, b = k / bands, (k + 1) / bands
        ya, yb = top + (foot - top) * a, top + (foot - top) * b
        light, dark = (RED, RED_SHADE) if k % 2 == 0 else (WHITE, SHADE)
        draw.polygon(p(x - half(a), ya, x + half(a), ya, x + half(b), yb, x - half(b), yb), fill=light)
        draw.polygon(p(x - half(a), ya, x - 0.25 * half(a), ya, x - 0.25 * half(b), yb, x - half(b), yb), fill=dark)
    draw.rectangle(p(x - 0.016, foot - 0.06, x + 0.016, foot), fill=(60, 36, 52))
    # Gallery, lantern, roof.
    draw.rectangle(p(x - 0.07, top - 0.018, x + 0.07, top), fill=(52, 40, 62))
    draw.rectangle(p(x - 0.036, top - 0.082, x + 0.036, top - 0.018), fill=LAMP)
    draw.rectangle(p(x - 0.005, top - 0.082, x + 0.005, top - 0.018), fill=(196, 150, 84))
    draw.pieslice(p(x - 0.05, top - 0.13, x + 0.05, top - 0.034), 180, 360, fill=RED_SHADE)
    ellipse(draw, x, top - 0.133, 0.009, 0.016, RED_SHADE)


def house(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle(p(0.035, 0.525, 0.155, 0.592), fill=SHADE)
    draw.polygon(p(0.02, 0.53, 0.05, 0.475, 0.14, 0.475, 0.17, 0.53), fill=RED_SHADE)
    draw.rectangle(p(0.06, 0.545, 0.085, 0.572), fill=LAMP)
    draw.rectangle(p(0.108, 0.545, 0.133, 0.572), fill=LAMP)


def picture(size: int) -> Image.Image:
    rng = random.Random(7)
    image = backdrop()
    moon, tower, lamp = (0.76, 0.235), 0.265, (0.265, 0.205)
    image = glow(image, lambda d: ellipse(d, *moon, 0.13, 0.13, (150, 110, 110)), 0.05)
    draw = ImageDraw.Draw(image)
    stars(draw)
    ellipse(draw, *moon, 0.085, 0.085, (255, 236, 196))
    for x, y, r in ((0.735, 0.21, 0.018), (0.785, 0.25, 0.024), (0.75, 0.275, 0.012)):
        ellipse(draw, x, y, r, r * 0.9, (238, 206, 168))
    cloud(draw, 0.87, 0.345, 0.36, (128, 66, 122), (226, 128, 120))
    cloud(draw, 0.57, 0.5, 0.3, (190, 88, 112), (250, 168, 116))
    sea(draw, rng, moon[0])
    # The beam: strong to the right, weaker to the left.
    image = glow(image, lambda d: d.polygon(p(*lamp, 1.05, 0.02, 1.05, 0.2), fill=(150, 136, 96)), 0.012, 0.8)
    image = glow(image, lambda d: d.polygon(p(*lamp, -0.05, 0.13, -0.05, 0.26), fill=(150, 136, 96)), 0.014, 0.4)
    draw = ImageDraw.Draw(image)
    cliff(draw)
    foam(draw)
    house(draw)
    lighthouse(draw, tower, 0.25, 0.605)
    image = glow(image, lambda d: ellipse(d, *lamp, 0.05, 0.05, (255, 226, 140)), 0.03, 0.8)
    for x, y, s in ((0.47, 0.3, 0.03), (0.54, 0.34, 0.024)):  # two gulls
        draw = ImageDraw.Draw(image)
        for side in (-1, 1):
            draw.line(p(x, y, x + side * s * 0.5, y - s * 0.45, x + side * s, y - s * 0.2), fill=(40, 30, 60), width=9)
    return image.resize((size, size), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="side length in pixels")
    parser.add_argument("--out", type=Path, default=ASSET)
    args = parser.parse_args()
    picture(args.size).save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
