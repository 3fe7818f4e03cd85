#!/usr/bin/env bash
# Runs the linter, the check of the format and the tests; sets up first.
#
#   bash launch/test.sh                        everything
#   bash launch/test.sh tests/test_cli.py -x   only pytest, with these arguments
#
# Makes .venv beside this folder with Python 3.11 or newer (PYTHON=... picks
# one) and installs the package with what training and the tests need. Run
# again, it only tests.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh"

if [[ $# -gt 0 && ( $1 == -h || $1 == --help ) ]]; then
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"
  exit 0
fi

make_environment "$root" train,test
cd "$root"
if [[ $# -gt 0 ]]; then
  exec .venv/bin/python -m pytest "$@"
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest --numprocesses auto --dist loadfile
