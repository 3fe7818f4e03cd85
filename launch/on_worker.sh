#!/usr/bin/env bash
# What launch/tpu_pod.sh calls on each worker; works on any machine.
#
#   bash launch/on_worker.sh setup EXTRAS            makes .venv beside this folder
#   bash launch/on_worker.sh start NAME COMMAND …    runs it behind the session
#   bash launch/on_worker.sh status NAME             says how it goes
#   bash launch/on_worker.sh stop NAME               SIGTERM, and waits for the end
#   bash launch/on_worker.sh log NAME                prints all it has said
#   bash launch/on_worker.sh check_idle NAME         exit status 1 if it runs
#
# NAME names a run; its log, process id and exit status are in .runs/NAME.
# COMMAND runs in this checkout, with .venv/bin in front of the path. STOP_SECONDS
# (600) is how long `stop` waits.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$root/launch/environment.sh"

usage() {
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"
}

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

misused() {
  fail "$1 See \`bash launch/on_worker.sh --help\`." 2
}

# The machine image may have an older Python: then uv brings one.
setup() {
  if ! [[ -x $root/.venv/bin/python ]] && ! find_python >/dev/null 2>&1; then
    [[ -z ${PYTHON:-} ]] || find_python  # says what is wrong with it
    python3 -m pip install --quiet --user uv >&2
    python3 -m uv venv --quiet --seed --python 3.11 "$root/.venv" >&2
  fi
  make_environment "$root" "$1"
}

is_running() {
  [[ -e $dir/pid ]] && kill -0 "$(<"$dir/pid")" 2>/dev/null
}

check_idle() {
  ! is_running || fail "run $name goes on, with process $(<"$dir/pid"). Stop \
it first."
}

start() {
  check_idle
  mkdir -p "$dir"
  rm -f "$dir/pid" "$dir/exit_status"
  export PATH=$root/.venv/bin:$PATH
  # A session of its own does not end with this one. The wrapper outlives the
  # signal of `stop`, which the command gets too, and notes the exit status.
  # shellcheck disable=SC2016
  setsid bash -c '
    dir=$1
    shift
    echo $$ >"$dir/pid.part"
    mv "$dir/pid.part" "$dir/pid"
    trap : TERM
    "$@"
    echo $? >"$dir/exit_status"
  ' run "$dir" "$@" >>"$dir/log" 2>&1 </dev/null &
  until [[ -e $dir/pid ]]; do sleep 0.05; done
  status
}

status() {
  local last=''
  [[ ! -e $dir/log ]] || last=": $(tail -n 1 "$dir/log")"
  if is_running; then
    echo "running$last"
  elif [[ -e $dir/exit_status ]]; then
    echo "ended with status $(<"$dir/exit_status")$last"
  elif [[ -e $dir/pid ]]; then
    echo "was killed$last"
  else
    echo 'was never started'
  fi
}

stop() {
  local seconds=${STOP_SECONDS:-600}
  local end=$((SECONDS + seconds))
  if is_running; then
    kill -TERM -- "-$(<"$dir/pid")"
    while is_running; do
      ((SECONDS < end)) || fail "run $name has not ended within $seconds s."
      sleep 0.1
    done
  fi
  status
}

case ${1:-} in
  -h | --help) usage ;;
  setup)
    [[ $# -eq 2 ]] || misused 'setup takes the extras to install, as train,tpu.'
    setup "$2"
    ;;
  start | status | stop | log | check_idle)
    what=$1
    [[ $# -ge 2 ]] || misused "$what takes the name of a run."
    name=$2
    [[ $name =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] ||
      misused "the run is called $name, expected letters, digits, _, . and -."
    shift 2
    [[ $what != start || $# -gt 0 ]] || misused 'start takes a command.'
    cd "$root"
    dir=$root/.runs/$name
    if [[ $what == log ]]; then
      [[ -e $dir/log ]] || fail "run $name was never started."
      cat "$dir/log"
    else
      "$what" "$@"
    fi
    ;;
  '') misused 'nothing to do.' ;;
  *) misused "unknown command $1." ;;
esac
