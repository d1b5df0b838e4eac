#!/usr/bin/env bash
# Trains on a TPU pod slice, every host at once by ssh. Usage: launch/tpu_pod.sh [--dry-run] COMMAND [-- FLAGS OF hfgd_jax.main]
#
#   create    makes the slice, or reuses the one that is there
#   install   copies this code to all hosts, installs it there, and brings the data set to each
#   start     starts one process a host, detached: closing the connections does not end them
#   up        the three above
#   status, stop    of all hosts; stop lets the run save first
#   logs      of host WORKER (0)
#   delete    the slice, with all that is on its disks (gcloud asks)
#
# WORKDIR of the run is gs://..., or an absolute path that all hosts share. For instance:
#
# TPU_NAME=p ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-64 RUNTIME_VERSION=v2-alpha-tpuv5-lite \
#     WORKDIR=gs://my-bucket/runs/first launch/tpu_pod.sh up -- --config=configs/paper.py:table9/hfgd_os4
#
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
[[ ${WORKDIR:-/} == gs://* || ${WORKDIR:-/} == /* ]] ||
    fail "WORKDIR=$WORKDIR: all hosts write one run; want gs://..., or an absolute path that they share"
by_ssh all
