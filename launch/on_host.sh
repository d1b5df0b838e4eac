#!/usr/bin/env bash
# What the TPU launchers do on each host. Usage: on_host.sh COMMAND [-- ARGUMENTS OF hfgd_jax.main]
#
#   install   makes .venv beside launch/ and installs hfgd_jax with the extras $EXTRA (tpu,gcs)
#   data      brings $DATA_SOURCE (gs://...) to $DATA_DIR: DATA_HOW=copy (to the disk), or mount (gcsfuse)
#   run       runs hfgd_jax.main here and now; again after a crash, $RESTARTS times (3)
#   start     the same, detached, with its output in $STATE/log
#   status    running or not, and the last exit code
#   logs      the log, as it grows
#   stop      SIGTERM to our run alone: it saves and ends; by force after $STOP_TIMEOUT seconds (600)
#
# STATE is ~/hfgd_jax_run. One run a host: libtpu gives all chips to one process.
# EXIT_FOLDER (gs://..., optional): where an empty file exit_code_N is left when the run is over for good.
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
STATE=${STATE:-$HOME/hfgd_jax_run}
LOCK=${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}
PYTHON=${PYTHON:-$root/.venv/bin/python}

as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"; else sudo -n "$@" 2>/dev/null || "$@"; fi
}

# The start time of a process, which tells it from a later one with the same id; empty where there is none.
began() {
    local line
    line=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    line=${line##*) } # the name before it may hold anything
    read -ra line <<<"$line"
    [[ ${line[0]} == Z ]] || echo "${line[19]}"
}

# The process id of our run; empty where none is running.
ours() {
    local pid start
    [[ -f $STATE/pid ]] || return 0
    read -r pid start <"$STATE/pid" || return 0
    if [[ $pid =~ ^[0-9]+$ && -n $start && $(began "$pid") == "$start" ]]; then echo "$pid"; fi
}

# Processes that have the lock file or a chip open.
holders() {
    as_root find /proc/[0-9]*/fd \( -lname "$LOCK" -o -lname '/dev/accel[0-9]*' -o -lname '/dev/vfio/[0-9]*' \) \
        -printf '%h\n' 2>/dev/null | cut -d/ -f3 | sort -un
}

# A lock file that a killed process left makes libtpu refuse to start. It goes only where nobody holds it;
# a process of somebody else's is never touched.
free_chips() {
    local pids waited=0
    while pids=$(holders || true) && [[ -n $pids ]]; do
        if ((waited >= ${CHIP_TIMEOUT:-60})); then
            for pid in $pids; do
                echo "  $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)" >&2
            done
            echo "error: the chips are in use by the processes above; end them, or wait for them" >&2
            return 1
        fi
        sleep 1
        waited=$((waited + 1))
    done
    if [[ -e $LOCK ]]; then
        echo "removing $LOCK, which no process holds"
        as_root rm -f "$LOCK"
    fi
}

install() {
    [[ -x $PYTHON ]] || "${HOST_PYTHON:-python3}" -m venv "$root/.venv" ||
        fail "no Python 3.11 with venv here; set HOST_PYTHON, or: sudo apt-get install python3.11-venv"
    "$PYTHON" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: hfgd_jax needs Python 3.11 or newer; set HOST_PYTHON and remove .venv")'
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "${root}[${EXTRA:-tpu,gcs}]"
}

data() {
    local bucket folder only=()
    [[ -n ${DATA_SOURCE:-} ]] || return 0
    check_data
    mkdir -p "$DATA_DIR"
    case ${DATA_HOW:-copy} in
        copy) gcloud storage rsync --recursive "$DATA_SOURCE" "$DATA_DIR" ;;
        mount)
            mountpoint -q "$DATA_DIR" && return 0
            command -v gcsfuse >/dev/null || fail "gcsfuse is not installed here; install it, or use DATA_HOW=copy"
            bucket=${DATA_SOURCE#gs://} folder=
            [[ $bucket == */* ]] && folder=${bucket#*/} bucket=${bucket%%/*}
            [[ -n ${folder%/} ]] && only=(--only-dir "${folder%/}")
            gcsfuse -o ro --implicit-dirs "${only[@]}" "$bucket" "$DATA_DIR"
            ;;
    esac
}

run() {
    local tries=0 result child
    mkdir -p "$STATE"
    [[ -z $(ours) ]] || fail "a run is under way here (process $(ours)); on_host.sh stop ends it"
    echo "$$ $(began $$)" >"$STATE/pid"
    trap 'stopped=1; [[ -z ${child:-} ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
    stopped=
    while :; do
        result=1
        if free_chips && [[ -z $stopped ]]; then
            (cd "$root" && exec "$PYTHON" -u -m hfgd_jax.main "$@") &
            child=$!
            while :; do # a signal ends the waiting, not the child
                result=0
                wait "$child" || result=$?
                [[ -n $(began "$child") ]] || break
            done
        fi
        child=
        echo "ended with exit code $result"
        case $result in 0 | 2 | 130 | 143) break ;; esac # done, a mistake, stopped: not again
        [[ -z $stopped ]] || break
        ((tries < ${RESTARTS:-3})) || break
        tries=$((tries + 1))
        echo "restart $tries of ${RESTARTS:-3}"
        sleep "${RESTART_PAUSE:-15}"
        [[ -z $stopped ]] || break
    done
    echo "$result" >"$STATE/exit_code"
    case $result in 0 | 2)
        [[ -z ${EXIT_FOLDER:-} ]] || gcloud storage cp - "$EXIT_FOLDER/exit_code_$result" </dev/null
        ;;
    esac
    return "$result"
}

start() {
    local pid
    pid=$(ours)
    [[ -z $pid ]] || fail "a run is under way here (process $pid); on_host.sh stop ends it"
    mkdir -p "$STATE"
    rm -f "$STATE/pid" "$STATE/exit_code"
    setsid nohup bash "${BASH_SOURCE[0]}" run -- "$@" >"$STATE/log" 2>&1 </dev/null &
    for _ in {1..100}; do
        [[ -s $STATE/pid || -s $STATE/exit_code ]] && break
        sleep 0.1
    done
    status
}

status() {
    local pid
    pid=$(ours)
    if [[ -n $pid ]]; then
        echo "$(hostname): running, process $pid, log $STATE/log"
    else
        echo "$(hostname): not running, last exit code $(cat "$STATE/exit_code" 2>/dev/null || echo none)"
    fi
}

stop() {
    local pid waited=0
    pid=$(ours)
    if [[ -z $pid ]]; then
        status
        return 0
    fi
    kill -TERM "$pid"
    while [[ -n $(ours) ]]; do
        if ((waited >= ${STOP_TIMEOUT:-600})); then
            echo "$(hostname): still running after $waited s; ending process group $pid by force"
            kill -KILL -- "-$pid" 2>/dev/null || kill -KILL "$pid"
            break
        fi
        sleep 1
        waited=$((waited + 1))
    done
    status
}

command=${1:-}
[[ $# -eq 0 ]] || shift
[[ ${1:-} != -- ]] || shift
case $command in
    install | data | status | stop) "$command" ;;
    run | start) "$command" "$@" ;;
    logs) tail -n 100 -F "$STATE/log" ;;
    -h | --help | help) usage "${BASH_SOURCE[0]}" ;;
    *) fail "on_host.sh $command: want install, data, run, start, status, logs or stop" ;;
esac
