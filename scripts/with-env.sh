#!/usr/bin/env bash
# Runs a command with the variables of an environment file and some more of its own.
#
#   with-env.sh FILE [NAME=VALUE]... COMMAND [ARGUMENT]...
#
# The file is read at each start, so that a process that is started again sees it as it is then.
set -euo pipefail

while IFS= read -r line; do
  [[ $line == [A-Z]*=* ]] && export "${line?}"
done <"$1"
shift
while [[ ${1:-} == [A-Z]*=* ]]; do
  export "${1?}"
  shift
done
exec "$@"
