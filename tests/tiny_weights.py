"""Files of weights with random numbers, as other projects write them."""

import jax
import numpy as np

from hfgd_jax.runs import system
from hfgd_jax.weights import foreign, pretrained
from hfgd_jax.weights.layouts import file_shape
from hfgd_jax.weights.names import upernet

LABELS = ("sky", "road", "car", "road")
UPERNET = {  # config.json of a small one, as transformers writes it
    "model_type": "upernet",
    "hidden_size": 8,
    "id2label": {str(i): name for i, name in enumerate(LABELS)},
    "backbone_config": {
        "model_type": "convnext",
        "depths": [2, 2, 6, 2],
        "hidden_sizes": [40, 80, 160, 320],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}


def random_file(naming, shapes, root, seed=0):
    """Tensors that `naming` asks for; scales and variances about one, weights small."""
    rng, flat = np.random.default_rng(seed), dict(jax.tree_util.tree_flatten_with_path(shapes)[0])
    flat = {tuple(key.key for key in path): leaf.shape for path, leaf in flat.items()}
    out = {}
    for name, target in naming.targets.items():
        shape = file_shape(target, flat[(target.collection, *root, *target.path)])
        noise = 0.1 * rng.standard_normal(shape).astype(np.float32)
        out[naming.prefixes[0] + name] = 1 + np.abs(noise) if target.path[-1] in ("scale", "var") else noise
    return out


def random_backbone(name, naming=""):
    """The tensors of a backbone's file; its first naming where none is given."""
    return random_file(pretrained.find_naming(name, naming), pretrained.backbone_shapes(name), ("backbone",))


def random_upernet():
    """The tensors of `UPERNET`, with what transformers' files have besides."""
    config = foreign.config_of(UPERNET)
    shapes = jax.eval_shape(system.make_init(system.build(config)), jax.random.PRNGKey(0)).model
    out = random_file(upernet.naming("convnext_a"), shapes, ())
    out["decode_head.bottleneck.batch_norm.num_batches_tracked"] = np.zeros((), np.int64)
    out["auxiliary_head.classifier.bias"] = np.zeros(4, np.float32)
    return out
