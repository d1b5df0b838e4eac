"""What figures need of trained runs: their names, masks, features and class tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, UInt8

from hfgd_jax.data import augment, canvases, pipeline
from hfgd_jax.errors import UserError
from hfgd_jax.figures.features import Pixels, features_at
from hfgd_jax.models.guidance import ClassTokens
from hfgd_jax.runs.system import Trained
from hfgd_jax.runs.workdir import short_names

Image = UInt8[np.ndarray, "h w 3"]


def names(workdirs: Sequence[str], labels: Sequence[str]) -> list[str]:
    """What runs are called: the labels, or else their folders, with as many parents as tell them apart.

    Raises:
        UserError: another number of labels than of runs, or a label twice.
    """
    if labels:
        if len(labels) != len(workdirs):
            raise UserError(f"--labels={','.join(labels)}: {len(labels)}, but {len(workdirs)} --workdirs")
        if twice := [label for label in labels if list(labels).count(label) > 1]:
            raise UserError(f"--labels: {twice[0]!r} twice")
        return list(labels)
    found = short_names(workdirs)
    if len(set(found)) < len(found):
        raise UserError(f"--workdirs={','.join(workdirs)}: a folder twice")
    return found


def check_alike(runs: Mapping[str, Trained]) -> None:
    """Makes sure that runs, by their names, have the same classes.

    Raises:
        UserError: two have not.
    """
    (first, one), *rest = ((name, run.table.classes) for name, run in runs.items())
    for name, classes in rest:
        if classes != one:
            raise UserError(
                f"--workdirs: {first} and {name} were trained on other classes "
                f"({', '.join(one[:4])}..., {', '.join(classes[:4])}...)"
            )


def class_tokens(run: Trained) -> Float[np.ndarray, "c k"]:
    """The class tokens, one a column."""
    return np.asarray(run.variables["params"]["class_tokens"]["kernel"])


def masks(run: Trained, images: Sequence[Image]) -> Iterator[UInt8[np.ndarray, "h w"]]:
    """Train ids of each RGB image, at its size, as `config.eval` of the run wants them."""
    predictor = run.predictor()
    predictor.plan([image.shape[:2] for image in images])
    for image in images:
        yield predictor(image).mask


def features(
    run: Trained,
    images: Sequence[Image],
    pixels: Pixels,
    on_image: Callable[[int], None] = lambda done: None,
) -> Float[np.ndarray, "n c"]:
    """The features that the class tokens classify for the prediction, at pixels of images.

    Each image is seen whole, at `data.input_scale`. The model is the run's, with a unit matrix for class
    tokens: its logits are the features.

    Args:
        run: of any upsampler, or of none.
        images: RGB, as they are stored.
        pixels: `image` are positions in `images`; rows and columns are those of the image as stored.
        on_image: called after each image with how many are done.

    Returns:
        float32 `[n, C]`, in the order of `pixels`.
    """
    config, channels = run.system.config, class_tokens(run).shape[0]
    model: nn.Module = run.system.model.clone(class_tokens=ClassTokens(channels, channels))
    unit = {"kernel": jnp.eye(channels), "bias": jnp.zeros(channels)}
    variables = run.variables | {"params": run.variables["params"] | {"class_tokens": unit}}
    apply = jax.jit(lambda variables, image: model.apply(variables, image, train=False).logits)
    scale = augment.as_fraction(config.data.input_scale)
    plan = canvases.plan([image.shape[:2] for image in images], 1, [scale], config.model.geometry)
    found = np.zeros((len(pixels.image), channels), np.float32)
    for done, (canvas, (index,)) in enumerate(plan):
        (view,) = pipeline.views(images[index], [float(scale)], canvas, run.system.mean_pixel)
        maps = np.asarray(apply(variables, view["image"][None]))[0]
        own = pixels.image == index
        found[own] = features_at(
            maps,
            pixels.row[own],
            pixels.column[own],
            tuple(int(side) for side in view["image_size"]),
            images[index].shape[:2],
            output_stride=config.model.output_stride,
            geometry=config.model.geometry,
        )
        on_image(done + 1)
    return found
