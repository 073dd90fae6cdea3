#!/usr/bin/env bash
# Keeps one process of a stack running until it is told to stop.
#
#   supervise.sh STACK NAME SIGNAL COMMAND...
#
# STACK/run/NAME.pid is the process, STACK/logs/NAME.log what it prints. A process that ends before STACK/run/NAME.ready
# exists ends the supervisor too: it could not start. Later it is started again, after a pause, unless STACK/run/NAME.hold
# exists. TERM passes SIGNAL on, waits, and ends.
set -u

readonly STACK=$1 NAME=$2 SIGNAL=$3
shift 3
readonly RUN=$STACK/run/$NAME LOG=$STACK/logs/$NAME.log

# Long enough for a shutdown checkpoint or a drain on a busy machine.
readonly GRACE_SECONDS=20
readonly RESTART_PAUSE=0.2
# A process that dies this often within a second of its start is broken, not unlucky.
readonly QUICK_DEATHS_MAX=100

stopping=''
child=''

note() { printf 'supervisor: %s\n' "$*" >>"$LOG"; }

ask_to_stop() {
  stopping=yes
  [[ -n $child ]] && kill -"$SIGNAL" "$child" 2>/dev/null
}
trap ask_to_stop TERM INT HUP

run_once() {
  "$@" >>"$LOG" 2>&1 </dev/null &
  child=$!
  printf '%s\n' "$child" >"$RUN.pid.new" && mv "$RUN.pid.new" "$RUN.pid"
  [[ -n $stopping ]] && kill -"$SIGNAL" "$child" 2>/dev/null

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
  if ((quick_deaths > QUICK_DEATHS_MAX)); then
    note "$NAME ended $quick_deaths times at once and is given up"
    exit "$status"
  fi
  sleep "$RESTART_PAUSE"
  while [[ -e $RUN.hold && -z $stopping ]]; do sleep 0.05; done
  [[ -n $stopping ]] && exit 0
done
