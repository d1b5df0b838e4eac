#!/usr/bin/env bash
# Trains on queued TPU capacity and comes back after interruptions. Usage: launch/tpu_queued.sh [--dry-run] COMMAND [-- FLAGS OF hfgd_jax.main]
#
#   create    uploads this code and asks for the capacity; the startup script of the hosts does the rest
#   watch     create, where there is none, and then look every minute: capacity that was taken back is asked for
#             again, $RECREATES times (50); ends, and gives the TPU back, once the run is over
#   status    of the request
#   logs      of host WORKER (0)
#   delete    the request and its TPU, at once (the run's workdir stays)
#
# The startup script runs at every boot of a host: after maintenance the same command goes on in the same
# WORKDIR. Spot capacity that is taken back ends SUSPENDED and never comes back by itself: that is what `watch`
# is for. It may run anywhere, and may be stopped and started again itself.
#
# WORKDIR of the run is gs://...; its folder `launch` holds the code and the exit code. RESERVED=1: reserved
# capacity. For instance:
#
# TPU_NAME=q ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-16 RUNTIME_VERSION=v2-alpha-tpuv5-lite SPOT=1 \
#     WORKDIR=gs://my-bucket/runs/first launch/tpu_queued.sh watch -- --config=configs/paper.py:table9/hfgd_os4
#
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# What each host does at every boot, as root.
startup_script() {
    local home=/opt/hfgd_jax settings
    settings="$(host_settings)STATE=/var/lib/hfgd_jax_run EXIT_FOLDER=$(quoted "$folder")"
    cat <<END
#!/bin/bash
set -euo pipefail
export HOME=/root
mkdir -p $home
gcloud storage cp $(quoted "$folder/code.tar.gz") $home/code.tar.gz
tar -xzf $home/code.tar.gz -C $home
$settings bash $home/launch/on_host.sh install
$settings bash $home/launch/on_host.sh data
$settings bash $home/launch/on_host.sh start -- $(line "${arguments[@]}")
END
}

# Leaves no exit code of an earlier try of this run.
forget() {
    local number
    for number in 0 2; do
        run gcloud storage rm "$folder/exit_code_$number" 2>/dev/null || true
    done
}

create_request() {
    need RUNTIME_VERSION v2-alpha-tpuv5-lite
    check_data
    forget
    pack
    run gcloud storage cp "$archive" "$folder/code.tar.gz"
    local script capacity=()
    [[ -z ${SPOT:-} ]] || capacity+=(--spot)
    [[ -z ${RESERVED:-} ]] || capacity+=(--reserved)
    script=$(dirname "$archive")/startup-$TPU_NAME.sh
    if [[ -n $dry ]]; then
        echo "# with this in $(quoted "$script"):"
        startup_script | sed 's/^/#   /'
    else
        startup_script >"$script"
    fi
    run gcloud compute tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" "${where[@]}" \
        --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${capacity[@]}" \
        --metadata-from-file=startup-script="$script"
}

delete_request() {
    tpu queued-resources delete --force --quiet
}

state() {
    tpu queued-resources describe '--format=value(state.state)'
}

watch() {
    local now number again=0
    if [[ -n $dry ]]; then
        create_request
        echo "# then every ${POLL:-60} s, until one of these is there:"
        line gcloud storage ls "$folder/exit_code_0" "$folder/exit_code_2"
        echo "# (where describe says SUSPENDED or FAILED: delete and create again; at the end: delete)"
        state
        delete_request
        return 0
    fi
    now=$(state 2>/dev/null) && [[ -n $now ]] || create_request
    while :; do
        for number in 0 2; do
            if gcloud storage ls "$folder/exit_code_$number" >/dev/null 2>&1; then
                echo "the run is over: exit code $number"
                delete_request
                return "$number"
            fi
        done
        now=$(state 2>/dev/null) || now=UNKNOWN
        echo "$(date -u +%FT%TZ) $TPU_NAME: $now"
        case $now in
            SUSPENDED | FAILED)
                ((again < ${RECREATES:-50})) || fail "$TPU_NAME is $now after $again tries; see $(basename "$0") status"
                again=$((again + 1))
                delete_request
                create_request
                ;;
        esac
        sleep "${POLL:-60}"
    done
}

parse "$@"
place
case $command in
    create | watch)
        compose
        [[ $WORKDIR == gs://* ]] || fail "WORKDIR=$WORKDIR: the disk goes with the TPU; want gs://..."
        folder=${WORKDIR%/}/launch
        if [[ $command == create ]]; then create_request; else watch; fi
        ;;
    status) tpu queued-resources describe ;;
    logs) on_hosts "${WORKER:-0}" "sudo tail -n 100 -F /var/lib/hfgd_jax_run/log" ;;
    delete) delete_request ;;
    *) fail "$command: want create, watch, status, logs or delete" ;;
esac
