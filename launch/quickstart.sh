#!/usr/bin/env bash
# Gives a video music with the bundled model; sets everything up first.
#
#   bash launch/quickstart.sh                  the example clip of this project
#   bash launch/quickstart.sh VIDEO            your own video
#   bash launch/quickstart.sh VIDEO --seed 7   further flags of v2meow generate
#
# Makes .venv beside this folder with Python 3.11 or newer (PYTHON=... picks
# one), installs the package into it, and writes VIDEO's name with .v2meow.mp4
# into the folder where it was called. Run again, it only generates.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh"

if [[ $# -gt 0 && ( $1 == -h || $1 == --help ) ]]; then
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"
  exit 0
fi

make_environment "$root"
if [[ $# -eq 0 || $1 == -* ]]; then
  set -- "$root/data/example.mp4" "$@"
fi
exec "$root/.venv/bin/v2meow" generate "$@"
