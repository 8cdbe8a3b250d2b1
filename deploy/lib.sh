# shellcheck shell=bash
# What the scripts of this folder share: messages, missing tools, free ports, waiting, stopping. To be sourced.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Absolute, because scripts change folders; exported, so that cargo builds where the scripts look.
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-$REPO/target}")
export CARGO_TARGET_DIR=$TARGET
readonly REPO TARGET

say() { printf '%s\n' "$*" >&2; }
warn() { say "warning: $*"; }
die() { say "error: $*"; exit 1; }

# The comment block at the head of a script is its help text.
show_help() { sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$0"; }

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as the administrator, or says no when this user cannot become one without a password.
as_admin() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif have sudo && sudo -n true 2>/dev/null; then sudo -n "$@"
    else return 1; fi
}

# apt_install PACKAGE…: installs packages, or stops and names them.
apt_install() {
    have apt-get || die "this is no Debian-like system; install by hand what these Debian packages hold: $*"
    as_admin true || die "$(id -un) may not install packages; run: sudo apt-get install $*"
    say "installing $*"
    as_admin apt-get update -q >&2 || warn "apt-get update failed; going on with the package lists at hand"
    as_admin env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2 ||
        die "that failed; try: apt-get install $*"
}

# Each ensure_… function looks for a tool, and installs it when it is missing and that is possible.

ensure_rust() { have cargo || die "Rust is not installed; get it from https://rustup.rs, then run this again"; }

# ensure_cargo COMPONENT: rustfmt or clippy.
ensure_cargo() {
    ensure_rust
    have "cargo-${1/rust/}" || die "$1 is not installed; run: rustup component add $1"
}

# What librdkafka's build needs.
ensure_c_toolchain() {
    have cc && have c++ && have make && have pkg-config && pkg-config --exists openssl zlib && return
    apt_install build-essential pkg-config libssl-dev zlib1g-dev
}

# The folder of the newest installed Postgres server's programs.
postgres_bin() {
    local bin
    for bin in ${PG_BIN:+"$PG_BIN"} $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) "$(dirname "$(command -v pg_ctl)")"; do
        [ -x "$bin/initdb" ] && [ -x "$bin/pg_ctl" ] && { echo "$bin"; return; }
    done
    return 1
}

ensure_postgres() {
    if postgres_bin >/dev/null && have psql; then return; fi
    # Debian's package makes and starts a cluster of its own, which nobody here asked for.
    local quiet=/etc/postgresql-common/createcluster.d/outboxd.conf
    if as_admin mkdir -p "${quiet%/*}"; then as_admin sh -c "echo create_main_cluster = false >$quiet"; fi
    apt_install postgresql postgresql-client
    as_admin rm -f "$quiet"
}

ensure_java() {
    local major=0
    if have java; then major=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p'); fi
    [ "${major:-0}" -ge 17 ] || apt_install openjdk-17-jre-headless
}

ensure_maven() { have mvn || apt_install maven; }
ensure_shellcheck() { have shellcheck || apt_install shellcheck; }

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

# True when process $1 is there and no zombie. From /proc, because a minimal system has no ps.
alive() { [ -n "${1:-}" ] && grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$1/status"; }
gone() { ! alive "$1"; }

# The command line of process $1.
command_line() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline"; }

# stop_pid PID SECONDS: asks a process to end, and ends it when the time is over.
stop_pid() {
    alive "${1:-}" || return 0
    kill -TERM "$1" 2>/dev/null || return 0
    wait_for "$2" gone "$1" && return 0
    warn "process $1 did not end within $2 s; killing it"
    kill -KILL "$1" 2>/dev/null || true
    wait_for 5 gone "$1"
}
