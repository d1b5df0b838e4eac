"""Serves a trained model on this machine: a page that predicts images, and POST /predict for programs.

    python -m hfgd_jax.tools.serve --workdir runs/camvid --checkpoint best --sizes 360x480
    curl -F image=@photo.jpg http://127.0.0.1:8000/predict -o mask.png

It answers this machine alone unless --host says otherwise. docs/serve.md has the limits and the API.
"""

import dataclasses
import ipaddress
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from hfgd_jax.data import image_files
from hfgd_jax.data.prepared import open_split
from hfgd_jax.errors import UserError, require, warn
from hfgd_jax.export import bundle
from hfgd_jax.runs import saved_config
from hfgd_jax.runs.system import load
from hfgd_jax.runtime import shell, storage
from hfgd_jax.runtime.progress import Doing
from hfgd_jax.serve import server
from hfgd_jax.serve.app import make_app
from hfgd_jax.serve.limits import SIDES, Limits
from hfgd_jax.serve.model import BoundedPredictor
from hfgd_jax.tools.macs import parse_size


def define_flags() -> None:
    """The command's flags."""
    defaults = Limits()
    flags.DEFINE_string("workdir", None, "Run directory of the model.", required=True)
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step.")
    flags.DEFINE_string(
        "host", "127.0.0.1", "Address to answer at; 0.0.0.0 is every network of this machine."
    )
    flags.DEFINE_integer(
        "port", 8000, "Port to answer at; 0 takes a free one.", lower_bound=0, upper_bound=65535
    )
    flags.DEFINE_list(
        "names",
        [],
        "Names, with commas, that clients may call the server by, besides localhost and IP addresses.",
    )
    flags.DEFINE_list(
        "sizes",
        [],
        "Sizes of images, HEIGHTxWIDTH with commas, to compile the model for before it serves; others are "
        "compiled when the first of them comes. Empty: the data set's first image's, or the run's crop.",
    )
    flags.DEFINE_integer(
        "upload_megabytes", defaults.upload_bytes >> 20, "Largest upload.", lower_bound=1, upper_bound=1024
    )
    flags.DEFINE_integer(
        "pixels", defaults.pixels, "Largest image.", lower_bound=1, upper_bound=image_files.MAX_PIXELS
    )
    flags.DEFINE_integer(
        "requests",
        defaults.requests,
        "Requests that are read, wait or are predicted at once; more are sent away.",
        lower_bound=1,
        upper_bound=1000,
    )


def exposure(host: str) -> str | None:
    """A line on who else can ask a server at this address; None where only this machine can."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if local:
        return None
    return (
        f"--host={host}: anyone who reaches this address can have images predicted; there is "
        "no password and no encryption"
    )


def usual_size(config: ConfigDict) -> tuple[int, int]:
    """The size of the first image that the run was evaluated on; its crop where that is not here."""
    data = config.data
    try:
        return open_split(data.data_dir, data.dataset, data.eval_split).size(0)
    except (UserError, IndexError):
        return tuple(data.crop)


def limits_of(values: flags.FlagValues) -> Limits:
    """The limits that the flags ask for."""
    defaults = Limits()
    return dataclasses.replace(
        defaults,
        upload_bytes=values.upload_megabytes << 20,
        pixels=values.pixels,
        requests=values.requests,
        connections=values.requests + defaults.connections - defaults.requests,
    )


def main(_: Sequence[str]) -> int:
    """Serves until it is interrupted; returns no exit code of its own."""
    values = flags.FLAGS
    require("hfgd serve", "hfgd_jax[serve]", "starlette", "uvicorn", "python_multipart")
    limits, sizes = limits_of(values), [parse_size(text, "--sizes") for text in values.sizes]
    for height, width in sizes:
        if height * width > limits.pixels:
            raise UserError(f"--sizes={height}x{width}: more than --pixels={limits.pixels}")
    if (storage.resolve(values.workdir, "--workdir") / bundle.MANIFEST).exists():
        raise UserError(f"--workdir={values.workdir}: is a bundle, which is not served; name its run")
    listening = server.bound(values.host, values.port)
    config = saved_config.get_config(values.workdir)
    run = load(config, values.workdir, values.checkpoint).local()
    predictor = BoundedPredictor(run.predictor(sides=SIDES), limits.shapes)
    sizes = sizes or [usual_size(config)]
    predictor.plan(sizes)
    with Doing("compiling the model", len(sizes)) as done:
        for number, size in enumerate(sizes, start=1):
            predictor.warm_up(size)
            done(number)
    app = make_app(
        predictor,
        run.table,
        name=f"{config.model.upsampler}, {config.model.backbone.name}, step {run.step}",
        names={values.host, *values.names},
        limits=limits,
        log=lambda line: print(line, flush=True),
    )
    where = server.url(listening, values.host)
    if line := exposure(values.host):
        warn(line)
    server.serve(
        app,
        listening,
        limits,
        lambda: print(f"serving step {run.step} of {values.workdir} at {where} (Ctrl-C ends it)", flush=True),
    )
    return 1


if __name__ == "__main__":
    define_flags()
    shell.run(main)
