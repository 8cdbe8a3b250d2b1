# shellcheck shell=bash
# What the scripts of this folder share: messages, missing tools, free ports, waiting, stopping. To be sourced.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$REPO/target}
# shellcheck disable=SC2034  # read by the scripts that source this file
readonly REPO TARGET

say() { printf '%s\n' "$*" >&2; }
warn() { say "warning: $*"; }
die() { say "error: $*"; exit 1; }

# The comment block at the head of a script is its help text.
show_help() { sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$0"; }

have() { command -v "$1" >/dev/null 2>&1; }

# need TOOL PACKAGE: stops with the way to install TOOL when it is not there.
need() { have "$1" || die "$1 is not installed; on Debian or Ubuntu: apt-get install $2"; }

# Runs a command as the administrator, or says no when this user cannot become one without a password.
as_admin() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif have sudo && sudo -n true 2>/dev/null; then sudo -n "$@"
    else return 1; fi
}

# apt_install PACKAGE…: installs the packages that are missing, or stops and names them.
apt_install() {
    local package missing=()
    have dpkg-query || die "this is not a Debian-like system; install by hand what these packages hold: $*"
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    as_admin true || die "cannot install packages as $(id -un); run: sudo apt-get install ${missing[*]}"
    as_admin apt-get update -q >&2 || warn "apt-get update failed; trying the package lists at hand"
    as_admin env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2 ||
        die "installing failed; run: apt-get install ${missing[*]}"
}

# A TCP port of 127.0.0.1 that nothing listens on, below the range the system gives to outgoing connections.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((RANDOM % 12000 + 20000))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    die "found no free port on 127.0.0.1"
}

# wait_for SECONDS COMMAND…: runs the command every 0.1 s until it succeeds; fails when the time is over.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# True when process $1 is there and no zombie.
alive() { [ -n "${1:-}" ] && [[ "$(ps -o stat= -p "$1" 2>/dev/null)" == [!Z]* ]]; }
gone() { ! alive "$1"; }

# stop_pid PID SECONDS: asks a process to end, and ends it when the time is over.
stop_pid() {
    alive "$1" || return 0
    kill -TERM "$1" 2>/dev/null || return 0
    wait_for "$2" gone "$1" && return 0
    warn "process $1 did not end within $2 s; killing it"
    kill -KILL "$1" 2>/dev/null || true
    wait_for 5 gone "$1"
}
