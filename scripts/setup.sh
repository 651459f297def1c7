#!/bin/sh
# Makes .venv with Tunesmith in it, from nothing, on Debian, Ubuntu and macOS. Called by make; safe to call again.
#
#   sh scripts/setup.sh        what the demo needs
#   sh scripts/setup.sh dev    the same, and what the tests need
#
# PYTHON=/path/to/python3.12 chooses the Python. pip's own settings (PIP_INDEX_URL, pip.conf) are respected.
set -eu

cd "$(dirname "$0")/.."
WANTED=${1:-run}
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
TORCH_CPU=2.13.0

say() { printf '%s\n' "setup: $*"; }
die() {
    printf '%s\n' "error: $1" >&2
    shift
    for hint in "$@"; do printf '%s\n' "hint: $hint" >&2; done
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }
may_apt() { [ "$(id -u)" = 0 ] && has apt-get; }
apt_install() {
    [ -n "${APT_UPDATED:-}" ] || { apt-get update -q >/dev/null || true; APT_UPDATED=yes; }
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null
}

# --- a Python of 3.11 or newer -----------------------------------------------------------------------------------

# new_enough PYTHON [FIRST-MINOR-TOO-NEW]. A shim of pyenv exists without working, so it is run, not looked up.
new_enough() { "$1" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, ${2:-99}))" >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || die "PYTHON=$PYTHON is no Python of 3.11 or newer that can be started"
        return
    fi
    # Not every package has wheels for the newest Python at once: 3.11 to 3.13 are looked for first.
    for PYTHON in python3 python3.13 python3.12 python3.11; do
        if new_enough "$PYTHON" 14; then return; fi
    done
    for PYTHON in python3 python3.14 python3.15; do
        if new_enough "$PYTHON"; then return; fi
    done
    die "no Python of 3.11 or newer was found (python3, python3.11, python3.12, python3.13)" \
        "Debian 12+, Ubuntu 24.04+: apt-get install python3 python3-venv" \
        "Ubuntu 22.04: apt-get install python3.11 python3.11-venv" \
        "macOS: brew install python@3.13" \
        "or name one: make demo PYTHON=/path/to/python3.12"
}

make_venv() {
    if .venv/bin/python -m pip --version >/dev/null 2>&1; then
        new_enough .venv/bin/python || die ".venv has a Python older than 3.11" "remove it with: make clean"
        return
    fi
    find_python
    if ! "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1; then # Debian and Ubuntu pack it apart
        package=$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        may_apt || die "$PYTHON cannot make virtual environments: it lacks ensurepip" \
            "Debian, Ubuntu: sudo apt-get install $package"
        say "installing $package"
        apt_install "$package" || apt_install python3-venv || die "apt-get could not install $package"
    fi
    say "making .venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear .venv || die "$PYTHON could not make .venv"
}

# --- packages ----------------------------------------------------------------------------------------------------

pip_install() { .venv/bin/python -m pip install --disable-pip-version-check $QUIET "$@"; }

answers() {
    if has curl; then
        curl -fsL --connect-timeout 5 --max-time 10 -o /dev/null "$1" 2>/dev/null
    else
        .venv/bin/python - "$1" <<'PYTHON' >/dev/null 2>&1
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=8)
PYTHON
    fi
}

# torch goes first: the build is chosen by the machine, and the rest is content with any that is there.
install_torch() {
    if .venv/bin/python -c '
from importlib.metadata import version
raise SystemExit(tuple(map(int, version("torch").split("+")[0].split(".")[:2])) < (2, 11))' 2>/dev/null; then
        return
    fi
    if [ "$(uname -s)" = Darwin ] || nvidia-smi >/dev/null 2>&1; then
        say "installing torch"
        pip_install "torch>=2.11"
        return
    fi
    if answers "$TORCH_CPU_INDEX/torch/"; then
        say "installing torch for CPUs (there is no NVIDIA GPU)"
        if pip_install "torch==$TORCH_CPU" --index-url "$TORCH_CPU_INDEX"; then return; fi
    fi
    say "installing torch from the default index ($TORCH_CPU_INDEX does not deliver it)"
    pip_install "torch==$TORCH_CPU"
}

# --- programs that some tests use --------------------------------------------------------------------------------

# optional PROGRAM PACKAGE TESTS
optional() {
    if $1 >/dev/null 2>&1; then return; fi
    if may_apt; then
        say "installing $2"
        apt_install "$2" || true
    fi
    if $1 >/dev/null 2>&1; then return; fi
    say "$2 is not installed: $3"
}
has_chromium() { has chromium || has chromium-browser || [ -n "${TUNESMITH_TEST_CHROMIUM:-}" ]; }
has_chinese_font() { ! has apt-get || dpkg -s fonts-noto-cjk; }
has_go() { has go; }

# --- all of it, unless it is done already ------------------------------------------------------------------------

case $WANTED in run | dev) ;; *) die "there is no set-up called $WANTED" "sh scripts/setup.sh, or sh scripts/setup.sh dev" ;; esac
QUIET=
[ -t 1 ] || QUIET=-q
KEY=$({ cat pyproject.toml scripts/setup.sh && pwd; } | cksum | cut -d ' ' -f 1)
DONE=.venv/.tunesmith-$WANTED-$KEY

if [ -e "$DONE" ] && .venv/bin/python -c '' 2>/dev/null; then exit 0; fi
if [ "$WANTED" = dev ]; then
    optional has_chromium chromium "the tests that drive a browser will be skipped"
    optional has_chinese_font fonts-noto-cjk "Chinese will be boxes in pictures of the page"
    optional has_go golang-go "the test that compares with Go's own templates will be skipped"
fi
make_venv
install_torch
if [ "$WANTED" = dev ]; then
    say "installing Tunesmith and the tools for its tests"
    pip_install -e '.[dev]'
    say "fetching published chat templates for the tests"
    .venv/bin/python tests/published.py
    say "fetching llama.cpp's own quantizer for the tests to compare with"
    .venv/bin/python tests/llama_oracle.py
    rm -f .venv/.tunesmith-*
    : >".venv/.tunesmith-run-$KEY"
else
    say "installing Tunesmith"
    pip_install -e .
    rm -f .venv/.tunesmith-*
fi
: >"$DONE"
say "done: .venv/bin/tunesmith"
