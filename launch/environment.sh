# shellcheck shell=bash
# Sourced by the scripts beside it: makes .venv and installs the package.

# Prints the first Python that is new enough; PYTHON=... is taken as it is.
find_python() {
  local candidate
  local version_check='import sys; sys.exit(sys.version_info < (3, 11))'
  if [[ -n ${PYTHON:-} ]]; then
    if ! "$PYTHON" -c "$version_check" 2>/dev/null; then
      echo "error: PYTHON is \`$PYTHON\`, expected Python 3.11 or newer." \
        'Set it to another interpreter or unset it.' >&2
      return 1
    fi
    echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c "$version_check" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo 'error: no Python 3.11 or newer found. Install one, or name it with' \
    'PYTHON=/path/to/python.' >&2
  return 1
}

# make_environment ROOT [EXTRAS]: makes ROOT/.venv with the package in it,
# editable, and its EXTRAS, as `train,test`. Does nothing if a former call
# installed the same and setup.py has not changed since.
make_environment() {
  local root=$1 extras=${2:-}
  local venv=$root/.venv
  local stamp=$venv/installed-${extras:-base}
  local requirement=.${extras:+[$extras]}
  local python log
  # A checkout that was moved has the stamp, but its commands do not run.
  if [[ $stamp -nt $root/setup.py ]] && "$venv/bin/v2meow" --help \
    >/dev/null 2>&1; then
    return
  fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "Making $venv with $("$python" --version)" >&2
    if ! "$python" -m venv --clear "$venv" >&2; then
      echo "error: $python cannot make a virtual environment. On Debian and" \
        'Ubuntu, install python3-venv; or name another with PYTHON=...' >&2
      return 1
    fi
  fi
  echo "Installing v2meow_jax${requirement#.} into $venv (a few minutes)" >&2
  log=$venv/install.log
  if ! (cd "$root" && "$venv/bin/python" -m pip install --no-input \
    --disable-pip-version-check -e "$requirement") >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "error: the installation failed; all of its messages are in $log." \
      'Check the connection to the package index and run this again.' >&2
    return 1
  fi
  touch "$venv/installed-base" "$stamp"  # the extras come on top
}
