# shellcheck shell=bash
# Settings that the TPU launchers share, by environment variable:
#   TPU_NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION    such as my-tpu us-west4-a v5litepod-16 v2-alpha-tpuv5-lite
#   PROJECT SPOT         another project than gcloud's own; SPOT=1: spot capacity
#   DATA_DIR             where the prepared data sets are on every host
#   DATA_SOURCE DATA_HOW    gs://... that is brought to DATA_DIR: copy (the default), or mount by gcsfuse
#   EXPECT_DEVICES       devices of all hosts together; by default what ACCELERATOR_TYPE says
#   RESTARTS             tries of each host after a crash (3)
#   HOST_PYTHON          Python 3.11 or newer on the hosts (python3)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
archive=${XDG_CACHE_HOME:-$HOME/.cache}/hfgd_jax/code.tar.gz
dry=
main_arguments=()
# The other scripts read this file: on_host.sh and slurm.sbatch for `fail` to `line`, the TPU launchers for all.

fail() {
    echo "error: $*" >&2
    exit 2
}

# usage FILE: the comment at its head.
usage() {
    sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$1"
}

check_data() {
    [[ -z ${DATA_SOURCE:-} || ${DATA_SOURCE} == gs://* ]] || fail "DATA_SOURCE=$DATA_SOURCE: want gs://BUCKET/FOLDER"
    [[ -z ${DATA_SOURCE:-} || -n ${DATA_DIR:-} ]] || fail "DATA_DIR is not set: where is $DATA_SOURCE to be on each host? For instance: export DATA_DIR=/tmp/data"
    [[ ${DATA_HOW:-copy} =~ ^(copy|mount)$ ]] || fail "DATA_HOW=$DATA_HOW: want copy or mount"
}

# One shell word, quoted only where it must be.
quoted() {
    if [[ $1 =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then printf %s "$1"; else printf %s "${1@Q}"; fi
}

# A command line that can be pasted.
line() {
    local word out=
    for word in "$@"; do out+="$(quoted "$word") "; done
    printf '%s\n' "${out% }"
}

# Runs a command, or prints it with --dry-run.
run() {
    if [[ -n $dry ]]; then line "$@"; else "$@"; fi
}

# need NAME EXAMPLE: refuses a missing setting by its name.
need() {
    [[ -n ${!1:-} ]] || fail "$1 is not set; for instance: export $1=$2"
}

# Splits "[--dry-run] COMMAND [-- ARGUMENTS]" into dry, command and main_arguments; shows the help of $0.
parse() {
    command=
    while (($#)); do
        case $1 in
            --) shift && main_arguments=("$@") && break ;;
            --dry-run) dry=1 ;;
            -h | --help) usage "$0" && usage "${BASH_SOURCE[0]}" && exit 0 ;;
            -*) fail "$1: unknown option; hfgd_jax.main's flags go after --" ;;
            *)
                [[ -z $command ]] || fail "$1: one command at a time; hfgd_jax.main's flags go after --"
                command=$1
                ;;
        esac
        shift
    done
    [[ -n $command ]] || fail "no command; see $(basename "$0") --help"
}

# Sets `where`, the gcloud words that say where the TPU is.
place() {
    need TPU_NAME my-tpu
    need ZONE us-west4-a
    where=(--zone="$ZONE")
    [[ -z ${PROJECT:-} ]] || where+=(--project="$PROJECT")
}

# tpu KIND VERB WORDS...: a gcloud command about this TPU; KIND is tpu-vm or queued-resources.
tpu() {
    run gcloud compute tpus "$1" "$2" "$TPU_NAME" "${where[@]}" "${@:3}"
}

# Devices that JAX sees on a TPU of that type: named by cores up to v5p, by chips for v5e and v6e; from v4 on
# the two cores of a chip are one device.
devices_of() {
    local number=${1##*-}
    [[ $number =~ ^[0-9]+$ ]] || fail "ACCELERATOR_TYPE=$1: want a type that ends in its size, such as v5litepod-16"
    case $1 in
        v4-* | v5p-*) echo $((number / 2)) ;;
        *) echo "$number" ;;
    esac
}

# Fills `arguments` with what hfgd_jax.main gets: our settings and the user's words.
compose() {
    ((${#main_arguments[@]})) || fail "nothing to run: put hfgd_jax.main's flags after --, such as -- --config=configs/demo.py"
    need ACCELERATOR_TYPE v5litepod-16
    need WORKDIR gs://my-bucket/runs/first
    arguments=(--cluster=tpu "--expect_devices=${EXPECT_DEVICES:-$(devices_of "$ACCELERATOR_TYPE")}" "--workdir=$WORKDIR")
    arguments+=("${main_arguments[@]}")
    [[ -z ${DATA_DIR:-} ]] || arguments+=("--config.data.data_dir=$DATA_DIR") # overrides stand after --config
}

# The settings that on_host.sh reads, as NAME=VALUE words.
host_settings() {
    local name
    for name in DATA_SOURCE DATA_DIR DATA_HOW RESTARTS STOP_TIMEOUT HOST_PYTHON; do
        [[ -z ${!name:-} ]] || printf '%s=%s ' "$name" "$(quoted "${!name}")"
    done
}

# Packs what a host needs.
pack() {
    run mkdir -p "$(dirname "$archive")"
    run tar -C "$root" --exclude=__pycache__ -czf "$archive" \
        hfgd_jax configs launch pyproject.toml requirements.txt constraints.txt README.md LICENSE
}

# on_hosts WORKERS COMMAND...: a shell line on these workers of the TPU.
on_hosts() {
    tpu tpu-vm ssh --worker="$1" --command="${*:2}"
}

# by_ssh WORKERS: does $command on a TPU whose hosts are reached by ssh; WORKERS as gcloud's --worker.
by_ssh() {
    local host
    place
    host="$(host_settings)bash hfgd_jax/launch/on_host.sh"
    case $command in
        create) create_vm ;;
        install) install_hosts "$1" ;;
        start) start_hosts "$1" ;;
        up) compose && create_vm && install_hosts "$1" && start_hosts "$1" ;;
        status | stop) on_hosts "$1" "$host $command" ;;
        logs) on_hosts "${WORKER:-0}" "bash hfgd_jax/launch/on_host.sh logs" ;;
        delete) tpu tpu-vm delete ;;
        *) fail "$command: want create, install, start, up, status, logs, stop or delete" ;;
    esac
}

create_vm() {
    local state='' spot=()
    need ACCELERATOR_TYPE v5litepod-8
    need RUNTIME_VERSION v2-alpha-tpuv5-lite
    local describe=(tpu tpu-vm describe '--format=value(state)')
    if [[ -n $dry ]]; then
        echo "# only where this finds none:"
        "${describe[@]}"
    else
        state=$("${describe[@]}" 2>/dev/null) || state=
    fi
    case $state in
        READY) echo "$TPU_NAME is there: reused" && return 0 ;;
        "") ;;
        *) fail "$TPU_NAME is $state; wait, or remove it first: $(basename "$0") delete" ;;
    esac
    [[ -z ${SPOT:-} ]] || spot=(--spot)
    tpu tpu-vm create --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION" "${spot[@]}"
}

install_hosts() {
    check_data
    pack
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:hfgd_jax.tar.gz" "${where[@]}" --worker="$1"
    on_hosts "$1" "mkdir -p hfgd_jax && tar -xzf hfgd_jax.tar.gz -C hfgd_jax && $host install && $host data"
}

start_hosts() {
    check_data
    compose
    on_hosts "$1" "$host start -- $(line "${arguments[@]}")"
}
