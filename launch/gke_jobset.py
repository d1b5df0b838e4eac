"""Trains on a TPU slice of a GKE cluster: fills in gke_jobset.yaml and hands it to kubectl.

    NAME=first IMAGE=REGION-docker.pkg.dev/PROJECT/REPO/hfgd_jax:1 \\
        ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4 WORKDIR=gs://my-bucket/runs/first \\
        DATA_BUCKET=my-bucket DATA_DIR=/data/prepared \\
        python launch/gke_jobset.py -- --config=configs/paper.py:table9/hfgd_os4

What stands after `--` goes to hfgd_jax.main. Settings, by environment variable:

    NAME             of the JobSet
    IMAGE            with hfgd_jax[tpu,gcs]: docker build -f launch/Dockerfile -t IMAGE . && docker push IMAGE
    ACCELERATOR      node label cloud.google.com/gke-tpu-accelerator, such as tpu-v5-lite-podslice
    TOPOLOGY         node label cloud.google.com/gke-tpu-topology: chips of the slice, such as 4x4
    CHIPS_PER_HOST   (4)
    WORKDIR          of the run, gs://...
    DATA_BUCKET      is mounted at /data on every host, read-only, by Cloud Storage FUSE
    DATA_DIR         where the prepared data sets are in it (/data)
    SERVICE_ACCOUNT  of Kubernetes; it must be allowed to use both buckets (default)
    QUEUE            of Kueue; xpk's name for it (multislice-queue)
    RESTARTS         (50)
"""

import argparse
import json
import math
import os
import re
import shlex
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TEMPLATE = Path(__file__).with_name("gke_jobset.yaml")
_ANY = (r"\S+", "no spaces")
_WHOLE = "a whole number"
# Each setting's example (where it must be set) or default, and what it must match: a wrong one would fail
# in the cluster alone, minutes later.
EXAMPLES = {
    "NAME": ("first", r"[a-z]([-a-z0-9]{0,26}[a-z0-9])?", "at most 28 of a-z, 0-9 and -, from a letter on"),
    "IMAGE": ("us-docker.pkg.dev/my-project/my-repo/hfgd_jax:1", *_ANY),
    "ACCELERATOR": ("tpu-v5-lite-podslice", *_ANY),
    "TOPOLOGY": ("4x4", r"\d+x\d+(x\d+)?", "chips along each axis, such as 4x4 or 2x2x4"),
    "WORKDIR": (
        "gs://my-bucket/runs/first",
        r"gs://[^/]+/.+",
        "gs://BUCKET/FOLDER: a pod's disk goes with it",
    ),
    "DATA_BUCKET": ("my-bucket", r"[a-z0-9][-_.a-z0-9]+", "a bucket's name, without gs://"),
}
DEFAULTS = {
    "CHIPS_PER_HOST": ("4", r"[1-9]\d*", _WHOLE),
    "DATA_DIR": ("/data", r"/data(/.*)?", "a folder under /data, where DATA_BUCKET is"),
    "SERVICE_ACCOUNT": ("default", *_ANY),
    "QUEUE": ("multislice-queue", *_ANY),
    "RESTARTS": ("50", r"\d+", _WHOLE),
}
NUMBERS = ("HOSTS", "CHIPS_PER_HOST", "RESTARTS")


class Wrong(ValueError):
    """A setting that is missing or not of its form; one line for the user."""


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings above from an environment, checked, with `HOSTS` and `CHIPS`.

    Raises:
        Wrong: one is missing, or not of its form.
    """
    values = {}
    for name, (known, form, words) in (EXAMPLES | DEFAULTS).items():
        value = environ.get(name) or (known if name in DEFAULTS else "")
        if not value:
            raise Wrong(f"{name} is not set; for instance: export {name}={known}")
        if not re.fullmatch(form, value):
            raise Wrong(f"{name}={value}: want {words}")
        values[name] = value
    chips, of_host = math.prod(map(int, values["TOPOLOGY"].split("x"))), int(values["CHIPS_PER_HOST"])
    if chips % of_host:
        raise Wrong(f"CHIPS_PER_HOST={of_host}: does not divide the {chips} chips of {values['TOPOLOGY']}")
    return values | {"CHIPS": str(chips), "HOSTS": str(chips // of_host)}


def render(values: Mapping[str, str], arguments: Sequence[str]) -> str:
    """The YAML of the JobSet.

    Args:
        values: of `settings`.
        arguments: the user's, for hfgd_jax.main.
    """
    own = [
        "--cluster=gke",
        f"--expect_devices={values['CHIPS']}",
        f"--workdir={values['WORKDIR']}",
    ]
    data = f"--config.data.data_dir={values['DATA_DIR']}"  # overrides stand after --config
    # Kubernetes itself replaces $(NAME) in arguments; $$ is a plain $.
    words = [word.replace("$(", "$$(") for word in (*own, *arguments, data)]
    quoted = {name: value if name in NUMBERS else json.dumps(value) for name, value in values.items()}
    text = "\n".join(line for line in TEMPLATE.read_text().splitlines() if not line.startswith("#"))
    return string.Template(text).substitute(quoted, ARGUMENTS=json.dumps(words)) + "\n"


def main(argv: Sequence[str]) -> int:
    """Starts the JobSet, or prints it; returns the exit code."""
    own, arguments = list(argv), []
    if "--" in own:
        own, arguments = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dry-run", action="store_true", help="print YAML and command, touch nothing")
    options = parser.parse_args(own)
    command = ["kubectl", "apply", "--filename=-"]
    try:
        if not arguments:
            raise Wrong("nothing to run: put hfgd_jax.main's flags after --, such as -- --config=...")
        text = render(settings(os.environ), arguments)
        if options.dry_run:
            print(f"{shlex.join(command)} <<'END'\n{text}END")
            return 0
        return subprocess.run(command, input=text, text=True).returncode
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
    except FileNotFoundError:
        print("error: kubectl is not installed; see --dry-run for what it would get", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
