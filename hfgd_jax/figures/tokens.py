"""How similar the class tokens of a run are to each other (paper, Fig. 6); pure functions."""

import numpy as np
from jaxtyping import Float
from scipy.special import softmax


def cosines(kernel: Float[np.ndarray, "c k"]) -> Float[np.ndarray, "k k"]:
    """Cosine similarities of the tokens, float64 `[K, K]`; 0 with a token that is zero."""
    kernel = np.asarray(kernel, np.float64)
    norms = np.linalg.norm(kernel, axis=0)
    unit = kernel / np.where(norms == 0.0, 1.0, norms)
    return unit.T @ unit


def dependencies(kernel: Float[np.ndarray, "c k"]) -> Float[np.ndarray, "k k"]:
    """What the classifier says of its own tokens: softmax over classes of their products, float64 `[K, K]`.

    Row i is the token of class i taken for a feature, without the biases: the diagonal is the confidence in
    the own class, and the more lies beside it, the more that class depends on others. Reading: the paper
    speaks of confidence scores on the diagonal and follows CAR, whose similarity is a softmax of products;
    its scale by the number of channels, which would make all tokens alike, is left out.

    Args:
        kernel: `[C, K]`, a token a column.
    """
    kernel = np.asarray(kernel, np.float64)
    return softmax(kernel.T @ kernel, axis=1)
