"""Runs an exported bundle: needs jax (which reads programs with flatbuffers) and numpy, nothing else.

import loader                                  # this file, which lies in every bundle
model = loader.load("BUNDLE")                  # or load("BUNDLE", "bfloat16")
masks = model(images)                          # uint8 [b, h, w, 3] RGB of any size -> uint8 [b, h, w]
mask = model(image)                            # one of them: [h, w, 3] -> [h, w]

python loader.py BUNDLE IMAGE... [--output FOLDER]   # image files (with Pillow), or .npy files of [h, w, 3]
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export

_TYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jax.numpy.bfloat16)}


class Model:
    """A bundle's model. `classes` are its classes' names, `palette` their colours, uint8 `[k, 3]`."""

    def __init__(self, folder: str | Path, dtype: str):
        files = json.loads((Path(folder) / "manifest.json").read_text())["variants"].get(dtype)
        if files is None:
            raise ValueError(f"{folder}: has no {dtype} variant")
        self.manifest = verify(folder, ["labels.json", files["program"], files["weights"]])
        table = json.loads((Path(folder) / "labels.json").read_text())
        self.classes, self.palette = table["classes"], np.array(table["palette"], np.uint8)
        self.scale = self.manifest["input"]["scale"]
        self.weights = jax.device_put(_read_weights(Path(folder) / files["weights"]))
        program = export.deserialize(bytearray((Path(folder) / files["program"]).read_bytes()))
        self._run = jax.jit(lambda output, *arguments: program.call(*arguments)[output], static_argnums=0)

    def __call__(self, images: np.ndarray, logits: bool = False) -> np.ndarray:
        """Masks `[b, h, w]`, or their float32 logits `[b, h, w, k]`. Sizes compile in steps of 32."""
        if images.ndim == 3:
            return self(images[None], logits)[0]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
            raise ValueError(f"images {images.dtype} {images.shape}: want uint8 [b, h, w, 3] or [h, w, 3]")
        (height, width), given, places = images.shape[1:3], self.manifest["input"], []
        for axis in (1, 2):  # to the model's scale; and where the pixels that are asked for lie there
            length = images.shape[axis]
            images = _rescale(images, axis, *self.scale)
            pixels = np.arange(-(-length // 32) * 32, dtype=np.float32)
            places.append((pixels + 0.5) * np.float32(images.shape[axis] / length) - np.float32(0.5))
        m, extra = given["multiple"], given["extra"]
        sides = [max(1, -(-(side - extra) // m)) * m + extra for side in images.shape[1:3]]
        padded = np.tile(np.array(given["padding"], np.uint8), (len(images), *sides, 1))
        padded[:, : images.shape[1], : images.shape[2]] = images
        return np.asarray(self._run(int(logits), self.weights, padded, *places))[:, :height, :width]


def load(folder: str | Path, dtype: str = "float32") -> Model:
    """The `Model` of a bundle. ValueError: no such variant, or a file is not the one that was exported."""
    return Model(folder, dtype)


def verify(folder: str | Path, names: list[str] | None = None) -> dict:
    """The manifest of a bundle, once these files (None: all) have the hashes that it lists."""
    root = Path(folder)
    manifest = json.loads((root / "manifest.json").read_text())
    for name in names or manifest["files"]:
        listed, outside = manifest["files"].get(name, {}).get("sha256"), ".." in Path(name).parts
        path = root / name
        if outside or Path(name).is_absolute() or hashlib.sha256(path.read_bytes()).hexdigest() != listed:
            raise ValueError(f"{folder}: {name} is not the file that was exported; export or copy it again")
    return manifest


def _read_weights(path):  # .safetensors: the length of a JSON header, the header, the arrays' bytes
    data, weights = path.read_bytes(), {}
    start = 8 + int.from_bytes(data[:8], "little")
    for name, leaf in json.loads(data[8:start]).items():
        if name != "__metadata__":
            part = data[slice(*(start + at for at in leaf["data_offsets"]))]
            weights[name] = np.frombuffer(part, _TYPES[leaf["dtype"]]).reshape(leaf["shape"])
    return weights


def _rescale(images, axis, p, q):  # by p / q, as areas: averages where it shrinks, else interpolates
    n = images.shape[axis]
    if p == q:
        return images
    out, pixel = np.arange(max(1, -(-(2 * n * p - q) // (2 * q))))[:, None], np.arange(n)
    areas = np.minimum(pixel + 1, (out + 1) * q / p) - np.maximum(pixel, out * q / p)
    between = 1 - abs(np.clip((out + 0.5) * q / p - 0.5, 0, n - 1) - pixel)
    weights = np.maximum(areas if p < q else between, 0)
    scaled = np.tensordot(weights / weights.sum(1, keepdims=True), images, (1, axis))
    return np.rint(np.moveaxis(scaled, 0, axis)).astype(np.uint8)


def main() -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser("loader.py", description="Predicts images with an exported bundle.")
    parser.add_argument("bundle", help="folder that this file lies in")
    parser.add_argument(
        "images", nargs="+", help="image files (with Pillow), or .npy files of uint8 [h, w, 3]"
    )
    parser.add_argument("--output", help="folder for NAME.png and NAME_overlay.png; for .npy files NAME.npy")
    parser.add_argument("--dtype", default="float32", help="or bfloat16, where the bundle has it")
    given = parser.parse_args()
    try:
        model = load(given.bundle, given.dtype)
        for name in given.images:
            image = _read(Path(name))
            mask = model(image)
            shares = ", ".join(f"{model.classes[k]} {np.mean(mask == k):.1%}" for k in np.unique(mask))
            print(f"{name}: {shares}")
            if given.output:
                _write(model, Path(name), image, mask, Path(given.output))
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _read(path):
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError(
            f"{path}: image files need Pillow (pip install pillow); .npy files do not"
        ) from None
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _write(model, path, image, mask, folder):  # never in place of a file that is there
    folder.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        with (folder / path.name).open("xb") as file:
            np.save(file, mask)
        return
    from PIL import Image

    picture = Image.fromarray(mask)
    picture.putpalette(model.palette.tobytes())
    mixed = Image.fromarray(((image.astype(np.uint16) + model.palette[mask]) // 2).astype(np.uint8))
    for name, result in ((f"{path.stem}.png", picture), (f"{path.stem}_overlay.png", mixed)):
        with (folder / name).open("xb") as file:
            result.save(file, "PNG")


if __name__ == "__main__":
    sys.exit(main())
