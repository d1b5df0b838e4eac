"""What of a run says how good its backbone's last feature is (paper, Sec. 5.1); functions of configs."""

from typing import NamedTuple

from ml_collections import ConfigDict

from hfgd_jax.errors import UserError


class Measure(NamedTuple):
    """The branch whose score measures the backbone's feature (`eval.branch`), and what it is."""

    branch: str
    kind: str


def measure(model_config: ConfigDict, name: str) -> Measure:
    """The measure that a run has.

    Args:
        model_config: `config.model`.
        name: of the run, for the message.

    Raises:
        UserError: it has none, for its only scores are an upsampler's.
    """
    guidance = model_config.guidance
    if guidance.probe:
        stopped = guidance.probe_stop_gradient
        text = "gradient stopped at the backbone" if stopped else "its gradient trains the backbone"
        return Measure("probe", f"auxiliary FCN beside an upsampler, {text}")
    if guidance.tokens:
        protected = "protected" if guidance.protect else "not protected"
        return Measure("guide", f"guide branch, backbone {protected} from the upsampler")
    if model_config.upsampler == "none":
        return Measure("prediction", "no upsampler")
    raise UserError(
        f"{name}: its scores are those of the upsampler {model_config.upsampler!r} and say nothing of the "
        "backbone's feature; train it with --config.model.guidance.probe=True"
    )
