#!/usr/bin/env bash
# Runs one command on all workers of a TPU VM slice, behind the ssh session.
#
#   bash launch/tpu_pod.sh --tpu NAME --zone ZONE [OPTION …] -- COMMAND [ARG …]
#   bash launch/tpu_pod.sh --tpu NAME --zone ZONE --status
#   bash launch/tpu_pod.sh --tpu NAME --zone ZONE --stop
#   bash launch/tpu_pod.sh --tpu NAME --zone ZONE --logs DIR
#
# Copies this checkout to every worker, installs it there, and starts COMMAND in
# it, with .venv/bin in front of the path. jax finds the other workers by itself.
#   --tpu NAME         the slice
#   --zone ZONE        where it is
#   --project NAME     whose it is (default: gcloud's own)
#   --run NAME         name of this run (default: train)
#   --dir DIR          folder of the code below the home folder of the workers
#                      (default: v2meow)
#   --repository URL   clone this on the workers; copy nothing
#   --revision REV     commit, tag or branch of it (default: its default branch)
#   --extras LIST      extras to install (default: train,tpu)
#   --no_setup         start at once: code and environment are there
#   --status           say for each worker whether the run goes on
#   --stop             SIGTERM to the run on all workers: it saves and ends
#   --logs DIR         fetch what each worker has said into DIR/<worker>.log
#   --dry_run          print the commands and run none of them
#
# Example, and the same again to go on after a stop:
#   bash launch/tpu_pod.sh --tpu my-slice --zone us-west4-a -- \
#     bash launch/train.sh coarse --size base --codec soundstream \
#     --data_dir gs://my-bucket/records --model_dir /mnt/runs/coarse
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"
}

fail() {
  echo "error: $1 See \`bash launch/tpu_pod.sh --help\`." >&2
  exit 2
}

# Joins words so that a shell reads them as they are.
join() {
  local word line='' quoted="'\\''"
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word="'${word//\'/"$quoted"}'"
    fi
    line+=" $word"
  done
  echo "${line# }"
}

run() {
  if $dry_run; then join "$@"; else "$@"; fi
}

tpu='' zone='' project='' run=train dir=v2meow repository='' revision=''
extras=train,tpu logs='' action=start with_setup=true dry_run=false
command=()
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --)
      command=("${@:2}")
      break
      ;;
    --*=*)  # --tpu=a is --tpu a
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
  esac
  case $1 in
    --tpu | --zone | --project | --run | --dir | --repository | --revision | \
      --extras | --logs)
      [[ $# -ge 2 && -n $2 ]] || fail "$1 has no value, expected one."
      declare "${1#--}=$2"
      [[ $1 != --logs ]] || action=log
      shift 2
      ;;
    --status | --stop)
      action=${1#--}
      shift
      ;;
    --no_setup)
      with_setup=false
      shift
      ;;
    --dry_run)
      dry_run=true
      shift
      ;;
    -*) fail "unknown option $1." ;;
    *) fail "what is $1? The command to run stands behind --." ;;
  esac
done
[[ -n $tpu ]] || fail 'no --tpu, expected the name of a slice.'
[[ -n $zone ]] || fail 'no --zone, expected that of the slice.'
[[ -z $revision || -n $repository ]] || fail '--revision without --repository.'
if [[ $action == start ]]; then
  [[ ${#command[@]} -gt 0 ]] || fail 'no command, expected one behind --.'
else
  [[ ${#command[@]} -eq 0 ]] || fail "a command and --$action, expected one."
fi
$dry_run || command -v gcloud >/dev/null ||
  fail 'gcloud is not on the path, expected the Google Cloud CLI.'

where=("--zone=$zone" --worker=all)
[[ -z $project ]] || where+=("--project=$project")

on_workers() {  # COMMAND [GCLOUD OPTION …]: a line of shell on every worker
  run gcloud compute tpus tpu-vm ssh "$tpu" "${where[@]}" "${@:2}" \
    "--command=$1"
}

script=$(join "$dir/launch/on_worker.sh")
case $action in
  status | stop)
    on_workers "bash $script $action $(join "$run")"
    exit
    ;;
  log)
    run mkdir -p "$logs"
    on_workers "bash $script log $(join "$run")" "--output-directory=$logs"
    exit
    ;;
esac

line="bash $script start $(join "$run" "${command[@]}")"
if $with_setup; then
  idle="{ ! [ -e $script ] || bash $script check_idle $(join "$run"); }"
  setup="bash $script setup $(join "$extras")"
  if [[ -n $repository ]]; then
    code="{ [ -e $(join "$dir")/.git ] || $(join git clone -q "$repository" \
"$dir"); } && $(join git -C "$dir" fetch -q --tags origin)"
    checkout=$(join git -C "$dir" checkout -q --detach)
    code+=" && { $checkout $(join "origin/${revision:-HEAD}") 2>/dev/null"
    code+=" || $checkout $(join "${revision:-HEAD}"); }"
  else
    $dry_run || [[ -e $root/.git ]] ||
      fail "$root is no checkout of git, expected one, or --repository."
    archive=$(basename -- "$dir").tar.gz
    code="mkdir -p $(join "$dir") && tar -xzf $(join "$archive") -C \
$(join "$dir")"
    commit=$(git -C "$root" describe --always --dirty --abbrev=40 \
      --exclude='*' 2>/dev/null || true)
    [[ -z $commit ]] || line="V2MEOW_COMMIT=$(join "$commit") $line"
    folder=.
    $dry_run || folder=$(mktemp -d)
    trap '[[ $folder == . ]] || rm -r -- "$folder"' EXIT
    # What git does not ignore, with what is not committed yet.
    pack="$(join git -C "$root" ls-files -z -co --exclude-standard) | $(join \
      tar -czf "$folder/$archive" -C "$root" --null -T -)"
    if $dry_run; then echo "$pack"; else bash -o pipefail -c "$pack"; fi
    run gcloud compute tpus tpu-vm scp "$folder/$archive" "$tpu:" "${where[@]}"
  fi
  line="$idle && $code && $setup && $line"
fi
on_workers "$line"
