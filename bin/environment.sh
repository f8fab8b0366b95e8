# Sourced by the scripts beside it: sets $python to an interpreter that has what $needs (run or test) asks for.
# RINGRAFT_PYTHON names the Python to build the environment from, RINGRAFT_VENV the directory to put it in.

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)

find_python() {
    for candidate in ${RINGRAFT_PYTHON:+"$RINGRAFT_PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "ringraft needs Python 3.11 or newer and found none on PATH; install one, or set RINGRAFT_PYTHON to it" >&2
    return 1
}

base=$(find_python) || exit 1
python=$("$base" "$root/bin/environment.py" "$needs") || exit 1
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
