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
# WORKDIR of the run is gs://..., or a path on the VM, which is lost with it. For instance:
#
# TPU_NAME=t ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-8 RUNTIME_VERSION=v2-alpha-tpuv5-lite \
#     WORKDIR=gs://my-bucket/runs/demo launch/tpu_vm.sh up -- --config=configs/demo.py
#
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
by_ssh 0
