#!/usr/bin/env bash
# Keeps one process of a stack running until it is told to stop.
#
#   supervise.sh STACK NAME SIGNAL COMMAND...
#
# STACK/run/NAME.pid is the process, STACK/logs/NAME.log what it prints. A process that ends before STACK/run/NAME.ready
# exists ends the supervisor too: it could not start. Later it is started again, after a pause, unless STACK/run/NAME.hold
# exists. TERM passes SIGNAL on, waits, and ends.
#
# A node of the broker whose disk was full stores nothing more, though it answers, until it is started again: that is done
# as soon as its disk has room.
set -u

readonly STACK=$1 NAME=$2 SIGNAL=$3
shift 3
readonly RUN=$STACK/run/$NAME LOG=$STACK/logs/$NAME.log

# Long enough for a shutdown checkpoint or a drain on a busy machine.
readonly GRACE_SECONDS=20
readonly RESTART_PAUSE=0.2
# A process that dies this often within a second of its start waits for something, a disk with room for one: it is started
# less often, and never given up.
readonly QUICK_DEATHS_MAX=20
readonly RESTART_PAUSE_LONG=2
# How often a node of the broker is looked at, and the room on its disk that makes another start worth while.
readonly HEALTH_SECONDS=2
readonly HEALTH_ROOM_KB=4096
readonly HEALTH_GRACE_SECONDS=3

stopping=''
child=''

note() { printf 'supervisor: %s\n' "$*" >>"$LOG"; }

ask_to_stop() {
  stopping=yes
  [[ -n $child ]] && kill -"$SIGNAL" "$child" 2>/dev/null
}
trap ask_to_stop TERM INT HUP

# broker_health: what a node of the broker says of itself.
broker_health() {
  local socket monitor line answer=''
  read -r _ monitor _ <"$RUN.probe" || return 1
  {
    exec {socket}<>"/dev/tcp/127.0.0.1/$monitor" || return 1
    printf 'GET /healthz HTTP/1.0\r\n\r\n' >&"$socket"
    while IFS= read -r -t 2 line <&"$socket" || [[ -n $line ]]; do answer=$line; done
    exec {socket}>&-
  } 2>/dev/null
  printf '%s' "$answer"
}

# heal_broker PID: ends it when its disk has failed and has room again.
heal_broker() {
  local health free
  while sleep "$HEALTH_SECONDS" && kill -0 "$1" 2>/dev/null; do
    health=$(broker_health)
    [[ $health == *'write error'* ]] || continue
    free=$(df -Pk "$STACK/data/$NAME" | awk 'NR == 2 { print $4 }')
    ((free >= HEALTH_ROOM_KB)) || continue
    note "$NAME is started again, since its disk has room again; it said: $health"
    # With a stream that failed it may hang over its own end. Killing it loses nothing that it has confirmed.
    kill -TERM "$1" 2>/dev/null
    sleep "$HEALTH_GRACE_SECONDS"
    kill -KILL "$1" 2>/dev/null
    return
  done
}

run_once() {
  "$@" >>"$LOG" 2>&1 </dev/null &
  child=$!
  printf '%s\n' "$child" >"$RUN.pid.new" && mv "$RUN.pid.new" "$RUN.pid"
  [[ -n $stopping ]] && kill -"$SIGNAL" "$child" 2>/dev/null
  local healer=''
  if [[ $NAME == nats* ]]; then
    heal_broker "$child" &
    healer=$!
  fi

  local status=0
  while kill -0 "$child" 2>/dev/null && [[ -z $stopping ]]; do
    wait "$child"
    status=$?
  done
  local deadline=$((SECONDS + GRACE_SECONDS))
  while kill -0 "$child" 2>/dev/null; do
    if ((SECONDS >= deadline)); then
      note "$NAME did not stop within $GRACE_SECONDS s and was killed"
      kill -KILL "$child" 2>/dev/null
    fi
    sleep 0.05
  done
  child=''
  [[ -n $healer ]] && kill "$healer" 2>/dev/null
  rm -f "$RUN.pid"
  return "$status"
}

quick_deaths=0
while :; do
  started=$SECONDS
  run_once "$@"
  status=$?
  [[ -n $stopping ]] && exit 0
  note "$NAME ended with status $status"
  [[ -e $RUN.ready ]] || exit "$status"

  if ((SECONDS - started > 1)); then quick_deaths=0; else quick_deaths=$((quick_deaths + 1)); fi
  if ((quick_deaths > QUICK_DEATHS_MAX)); then sleep "$RESTART_PAUSE_LONG"; else sleep "$RESTART_PAUSE"; fi
  while [[ -e $RUN.hold && -z $stopping ]]; do sleep 0.05; done
  [[ -n $stopping ]] && exit 0
done
