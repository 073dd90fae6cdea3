# shellcheck shell=bash
# Small things that every part of ./dev needs: talking, versions, ports, waiting, loopback probes.
# Nothing here knows about the mesh.

say() { printf '%s\n' "$*" >&2; }

die() {
  printf 'dev: %s\n' "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# version_at_least HAVE MINIMUM
version_at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1) == "$2" ]]; }

# alive PID: running, and not merely waiting to be reaped.
alive() {
  local state
  state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 1
  [[ -n $state && $state != Z && $state != X ]]
}

# wait_until SECONDS COMMAND...: true as soon as the command is, false when the time is over.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.05
  done
}

# port_taken PORT: somebody listens on it, on whatever address.
port_taken() {
  local hex
  printf -v hex '%04X' "$1"
  grep -qE "^ *[0-9]+: [0-9A-F]+:$hex [0-9A-F]+:0000 0A " /proc/net/tcp /proc/net/tcp6 2>/dev/null
}

# Ports this run has already given away.
PORTS_CHOSEN=' '

# choose_port VARIABLE [PREFERRED]: the preferred port where it is free, otherwise one below the range from which the
# kernel takes ports for outgoing connections, so that none of those can be sitting on it.
choose_port() {
  local -n chosen=$1
  local candidate=${2:-0}
  until ((candidate > 0)) && [[ $PORTS_CHOSEN != *" $candidate "* ]] && ! port_taken "$candidate"; do
    candidate=$((20000 + RANDOM % 12000))
  done
  PORTS_CHOSEN+="$candidate "
  # shellcheck disable=SC2034  # a reference to the caller's variable
  chosen=$candidate
}

# first_line PORT [REQUEST]: what the server on a loopback port says first, within two seconds.
first_line() {
  local line='' socket
  {
    exec {socket}<>"/dev/tcp/127.0.0.1/$1" || return 1
    [[ -z ${2:-} ]] || printf '%b' "$2" >&"$socket"
    IFS= read -r -t 2 line <&"$socket"
    # What was asked for is taken to the end, so that the server does not see its reader go away.
    while [[ -n ${2:-} ]] && IFS= read -r -t 2 <&"$socket"; do :; done
    exec {socket}>&-
  } 2>/dev/null
  printf '%s' "${line%$'\r'}"
}

# http_ok PORT PATH: the server answers 200.
http_ok() {
  [[ $(first_line "$1" "GET $2 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n") == 'HTTP/1.'?' 200 '* ]]
}

# redis_process PORT: the process id that the Redis on a port says it has.
redis_process() {
  local line socket
  {
    exec {socket}<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf 'INFO server\r\nPING\r\n' >&"$socket"
    while IFS= read -r -t 2 line <&"$socket" && [[ $line != +PONG* && $line != -* ]]; do
      [[ $line == process_id:* ]] && printf '%s' "${line#process_id:}" | tr -d '\r'
    done
    exec {socket}>&-
    [[ $line == +PONG* ]]
  } 2>/dev/null
}

# random_hex BYTES
random_hex() { od -An -v -tx1 -N"$1" /dev/urandom | tr -d ' \n'; }
