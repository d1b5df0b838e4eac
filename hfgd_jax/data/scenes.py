"""Generated street scenes with exact labels: the images of the embedded data set `shapes`.

Nine classes (`labels.TABLES["shapes"]`). What makes it segmentation in miniature:
- water has the sky's colours and building walls have the road's: only place, shape and neighbours tell;
  signs and cars share their colours;
- poles and wires are 2 to 4 pixels wide; signs, poles and cars shrink with distance to a few pixels;
- light, blur and noise vary; outlines of the large things are ignored (255), those of poles are not.
"""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

from hfgd_jax.data.labels import IGNORE

SIZE = (160, 192)  # height, width
SKY, WATER, GRASS, ROAD, BUILDING, TREE, POLE, SIGN, CAR = range(9)

_FINE = 3  # scenes are drawn this much larger and averaged down
_VIVID = ((205, 45, 50), (230, 180, 40), (60, 70, 170), (235, 235, 235))  # signs and cars
_GRAIN = np.array([3, 3, 9, 4, 4, 11, 2, 2, 2], np.float32)  # strength of each class's texture
_LARGE = (SKY, WATER, GRASS, ROAD, BUILDING, TREE)  # their outlines are ignored

Item = tuple[float, Callable[[], None]]  # distance from the horizon, and what draws the thing


def scene(seed: int, index: int) -> tuple[UInt8[np.ndarray, "160 192 3"], UInt8[np.ndarray, "160 192"]]:
    """Image (RGB) and label of one scene: the same for the same arguments, always.

    Args:
        seed: which series of scenes (each split has its own).
        index: which scene of the series.

    Returns:
        uint8 image and uint8 label with ids 0 to 8, 255 ignored.
    """
    painter = _Painter(np.random.default_rng((seed, index)))
    painter.land()
    items = painter.buildings() + painter.trees() + painter.poles() + painter.cars()
    for _, draw in sorted(items, key=lambda item: item[0]):  # from far to near
        draw()
    return painter.finish()


class _Painter:
    """Draws image and label side by side; coordinates are (x, y) in pixels of the final image."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.height, self.width = SIZE
        self.image = np.zeros((self.height * _FINE, self.width * _FINE, 3), np.uint8)
        self.label = np.zeros(self.image.shape[:2], np.uint8)
        self.horizon = rng.uniform(0.36, 0.52) * self.height
        self.vanish = rng.uniform(0.35, 0.65) * self.width  # where the road meets the horizon
        self.foot = rng.uniform(0.4, 0.6) * self.width  # the road's middle at the bottom
        self.half_road = rng.uniform(34, 50)  # half the road's width at the bottom
        self.sky = self.jitter((150, 195, 235), 16)
        self.stone = self.jitter((142, 138, 140), 14)  # of roads and walls

    # -- small tools --

    def jitter(self, color: tuple[int, int, int], amount: float) -> np.ndarray:
        return (
            np.array(color) + self.rng.uniform(-amount, amount) + self.rng.uniform(-amount / 3, amount / 3, 3)
        )

    def near(self, y: float) -> float:
        """How near the ground at height y is: 0 at the horizon, 1 at the bottom of the image."""
        return (y - self.horizon) / (self.height - self.horizon)

    def road_middle(self, y: float) -> float:
        return self.vanish + (self.foot - self.vanish) * self.near(y)

    def road_half(self, y: float) -> float:
        return self.half_road * self.near(y)

    def polygon(self, points: list[tuple[float, float]], label: int, color: np.ndarray) -> None:
        corners = [np.rint(np.array(points) * _FINE).astype(np.int32)]
        cv2.fillPoly(self.image, corners, _color(color))
        cv2.fillPoly(self.label, corners, label)

    def box(
        self, left: float, top: float, right: float, bottom: float, label: int, color: np.ndarray
    ) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], label, color)

    def ellipse(self, x: float, y: float, rx: float, ry: float, label: int, color: np.ndarray) -> None:
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        self.polygon(list(zip(x + rx * np.cos(angles), y + ry * np.sin(angles), strict=True)), label, color)

    def stroke(self, points: list[tuple[float, float]], width: float, label: int, color: np.ndarray) -> None:
        path = [np.rint(np.array(points) * _FINE).astype(np.int32)]
        cv2.polylines(self.image, path, False, _color(color), max(1, round(width * _FINE)))
        cv2.polylines(self.label, path, False, label, max(1, round(width * _FINE)))

    # -- the things --

    def land(self) -> None:
        """Sky, grass, a lake in the sky's colours, and the road."""
        rows = np.linspace(-1, 1, self.image.shape[0])[:, None]
        self.image[:] = np.clip(self.sky + 14 * rows, 0, 255)[:, None]
        self.box(-1, self.horizon, self.width + 1, self.height + 1, GRASS, self.jitter((112, 168, 78), 14))
        if self.rng.random() < 0.85:
            side = self.rng.choice((-1, 1))
            x = self.vanish + side * self.rng.uniform(0.45, 0.7) * self.width
            depth = self.rng.uniform(0.25, 0.55) * (self.height - self.horizon)
            angles = np.linspace(0, np.pi, 24)
            rx = self.rng.uniform(0.35, 0.55) * self.width
            shore = [(x + rx * np.cos(a), self.horizon + depth * np.sin(a) ** 0.6) for a in angles]
            self.polygon(shore, WATER, self.sky + self.rng.uniform(-6, 6))
        bottom = self.height + 1
        left, right = self.foot - self.half_road, self.foot + self.half_road
        self.polygon([(self.vanish, self.horizon), (right, bottom), (left, bottom)], ROAD, self.stone)
        for near in np.arange(0.15, 1.0, 0.2) ** 1.5:  # the middle line
            y = self.horizon + near * (self.height - self.horizon)
            x, w = self.road_middle(y), 2.5 * near
            self.box(x - w / 2, y, x + w / 2, y + 12 * near, ROAD, self.stone + 45)

    def buildings(self) -> list[Item]:
        """Walls in the road's colours, on both sides of it."""
        items = []
        for _ in range(self.rng.integers(1, 4)):
            side = self.rng.choice((-1, 1))
            y = self.horizon + self.rng.uniform(0.04, 0.3) * (self.height - self.horizon)
            wide, high = self.rng.uniform(20, 46), self.rng.uniform(22, 58)
            gap = self.road_half(y) + self.rng.uniform(4, 60) + wide / 2
            x = self.road_middle(y) + side * gap
            color = self.stone + self.rng.uniform(-6, 6)
            roof = self.rng.random() < 0.4

            def draw(x=x, y=y, wide=wide, high=high, color=color, roof=roof) -> None:
                left, right, top = x - wide / 2, x + wide / 2, y - high
                if roof:
                    self.polygon([(left, top), (x, top - wide / 3), (right, top)], BUILDING, color - 30)
                self.box(left, top, right, y, BUILDING, color)
                self.box(x + wide * 0.1, y - 9, x + wide * 0.25, y, BUILDING, color - 45)

            items.append((y, draw))
        return items

    def trees(self) -> list[Item]:
        items = []
        for _ in range(self.rng.integers(2, 6)):
            side = self.rng.choice((-1, 1))
            y = self.horizon + self.rng.uniform(0.06, 0.75) * (self.height - self.horizon)
            size = 10 + 46 * self.near(y) * self.rng.uniform(0.7, 1.2)
            x = self.road_middle(y) + side * (self.road_half(y) + size * 0.5 + self.rng.uniform(2, 70))
            color = self.jitter((48, 104, 56), 14)
            puffs = self.rng.uniform(-0.3, 0.3, (4, 2)) * size

            def draw(x=x, y=y, size=size, color=color, puffs=puffs) -> None:
                trunk = size * 0.08 + 0.8
                self.box(x - trunk, y - size * 0.6, x + trunk, y, TREE, np.array((98, 76, 58)))
                for dx, dy in puffs:
                    self.ellipse(x + dx, y - size + dy, size * 0.34, size * 0.32, TREE, color)
                self.ellipse(x, y - size, size * 0.4, size * 0.42, TREE, color + 10)

            items.append((y, draw))
        return items

    def poles(self) -> list[Item]:
        """A row of poles along one side of the road, with wires; on the other side poles with signs."""
        side = self.rng.choice((-1, 1))
        color = self.jitter((70, 62, 60), 12)
        nears = (np.arange(5) + self.rng.uniform(0.2, 1.0)) / 5
        spots = [
            (self.horizon + n**1.6 * (self.height - self.horizon) * 0.95, n**1.6) for n in nears if n < 1
        ]
        tops, items = [], []
        for y, near in spots:
            x = self.road_middle(y) + side * (self.road_half(y) * 1.5 + 3)
            high = 10 + 105 * near
            tops.append((x, y - high))

            def draw(x=x, y=y, near=near, high=high) -> None:
                width, arm = 2 + 2 * near, 2 + 10 * near
                self.stroke([(x, y), (x, y - high)], width, POLE, color)
                self.stroke([(x - arm, y - high), (x + arm, y - high)], 2, POLE, color)

            items.append((y, draw))
        for (y, _), start, end in zip(spots[1:], tops[:-1], tops[1:], strict=True):
            t = np.linspace(0, 1, 9)
            sag = 0.12 * abs(end[0] - start[0]) * 4 * t * (1 - t)
            xs, ys = start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t + sag
            wire = list(zip(xs, ys, strict=True))
            items.append((y - 0.01, lambda wire=wire: self.stroke(wire, 2, POLE, color)))
        for _ in range(self.rng.integers(2, 5)):
            items.append(self.sign(-side, color))
        return items

    def sign(self, side: int, pole: np.ndarray) -> Item:
        near = self.rng.uniform(0.1, 0.85) ** 1.3
        y = self.horizon + near * (self.height - self.horizon)
        x = self.road_middle(y) + side * (self.road_half(y) * 1.15 + 2 + self.rng.uniform(0, 6))
        high, radius = 8 + 46 * near, 2.5 + 8 * near
        color = self.jitter(_VIVID[self.rng.integers(len(_VIVID))], 12)
        shape = self.rng.integers(3)

        def draw() -> None:
            self.stroke([(x, y), (x, y - high)], 2 + near, POLE, pole)
            if shape == 0:
                self.ellipse(x, y - high, radius, radius, SIGN, color)
            elif shape == 1:
                self.box(
                    x - radius, y - high - radius * 0.8, x + radius, y - high + radius * 0.8, SIGN, color
                )
            else:
                base = y - high + radius * 0.8
                corners = [(x - radius, base), (x, base - 2 * radius), (x + radius, base)]
                self.polygon(corners, SIGN, color)

        return y, draw

    def cars(self) -> list[Item]:
        items = []
        for _ in range(self.rng.integers(2, 5)):
            near = self.rng.uniform(0.08, 0.85) ** 1.2
            y = self.horizon + near * (self.height - self.horizon)
            x = self.road_middle(y) + self.rng.choice((-0.5, 0.5)) * self.road_half(y)
            half, high = 2.5 + 16 * near, 3.5 + 20 * near
            color = self.jitter(_VIVID[self.rng.integers(len(_VIVID))], 12)

            def draw(x=x, y=y, half=half, high=high, color=color) -> None:
                dark = np.array((45, 45, 55))
                for wheel in (-0.75, 0.75):
                    self.box(x + half * (wheel - 0.2), y - high * 0.3, x + half * (wheel + 0.2), y, CAR, dark)
                middle, top = y - high * 0.55, y - high
                self.box(x - half, middle, x + half, y - high * 0.12, CAR, color)
                cabin = [(x - half * 0.85, middle), (x - half * 0.6, top), (x + half * 0.6, top)]
                self.polygon([*cabin, (x + half * 0.85, middle)], CAR, color - 15)
                glass = [(x - half * 0.65, middle), (x - half * 0.5, top + high * 0.1)]
                self.polygon(
                    [*glass, (x + half * 0.5, top + high * 0.1), (x + half * 0.65, middle)], CAR, dark
                )

            items.append((y, draw))
        return items

    # -- light and lens --

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Averages down, adds texture, light, blur and noise, and ignores outlines."""
        size = (self.width, self.height)
        label = np.ascontiguousarray(self.label[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE])
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        noise = self.rng.standard_normal((2, self.height, self.width), np.float32)
        soft = cv2.GaussianBlur(noise[0], (0, 0), 2.0) * 4
        image += (_GRAIN[label] * (0.6 * soft + 0.5 * noise[1]))[..., None]
        light = self.rng.uniform(-0.14, 0.14, 2)
        y, x = np.mgrid[-1 : 1 : self.height * 1j, -1 : 1 : self.width * 1j]
        image *= (self.rng.uniform(0.88, 1.08) + light[0] * y + light[1] * x)[..., None].astype(np.float32)
        image = cv2.GaussianBlur(image, (0, 0), self.rng.uniform(0.3, 0.7))
        image += self.rng.uniform(1, 5) * self.rng.standard_normal(image.shape, np.float32)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), _ignore_outlines(label)


def _color(color: np.ndarray) -> tuple[int, int, int]:
    return tuple(int(c) for c in np.clip(color, 0, 255))


def _ignore_outlines(label: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Ignores pixels of large things that touch another class; poles do not count as another."""
    out = label.copy()
    large = np.isin(label, _LARGE)
    padded = np.pad(label, 1, mode="edge")
    height, width = label.shape
    for y, x in ((0, 1), (2, 1), (1, 0), (1, 2)):
        other = padded[y : y + height, x : x + width]
        out[(other != label) & (other != POLE) & large] = IGNORE
    return out
