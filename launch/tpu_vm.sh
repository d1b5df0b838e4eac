#!/usr/bin/env bash
# Trains on one TPU VM. Usage: launch/tpu_vm.sh [--dry-run] COMMAND [-- FLAGS OF hfgd_jax.main]
#
#   create    makes the TPU VM, or reuses the one that is there
#   install   copies this code to it, installs it there, and brings the data set
#   start     starts the run, detached: closing the connection does not end it
#   up        the three above
#   status, logs, stop    of the run; stop lets it save first
#   delete    the TPU VM, with all that is on its disk (gcloud asks)
#
# Settings, by environment variable:
#   TPU_NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION    my-tpu us-west4-a v5litepod-8 v2-alpha-tpuv5-lite
#   WORKDIR              of the run: gs://..., or a path on the VM, which is lost with it
#   PROJECT SPOT         another project than gcloud's own; SPOT=1: spot capacity
#   DATA_DIR             where the prepared data sets are on the VM
#   DATA_SOURCE DATA_HOW    gs://... that `install` brings to DATA_DIR: copy (the default), or mount by gcsfuse
#   EXPECT_DEVICES       devices that must be there; by default what ACCELERATOR_TYPE says
#   RESTARTS             tries after a crash (3)
#   HOST_PYTHON          Python 3.11 or newer on the VM (python3)
#
# TPU_NAME=t ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-8 RUNTIME_VERSION=v2-alpha-tpuv5-lite \
#     WORKDIR=gs://my-bucket/runs/demo launch/tpu_vm.sh up -- --config=configs/demo.py
set -euo pipefail
# shellcheck source=launch/tpu_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"
parse "$@"
by_ssh 0
