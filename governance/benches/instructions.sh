#!/usr/bin/env bash
# Instructions per decision of the core, counted by valgrind's callgrind: the same on an idle machine and on a busy one, so that
# a change that makes decisions dearer shows where a clock shows noise. Needs valgrind.
#
#   governance/benches/instructions.sh [MAXIMUM]
#
# With a maximum it fails where a decision takes more.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly DECISIONS=$((200 * 500))
command -v valgrind >/dev/null || { echo 'instructions.sh needs valgrind (apt install valgrind)' >&2; exit 1; }

bench=$(cargo bench -p governance --bench decisions --no-run --message-format json |
  sed -n 's/.*"executable":"\([^"]*decisions-[^"]*\)".*/\1/p' | tail -n 1)
[[ -n $bench ]] || { echo 'the benchmark was not built' >&2; exit 1; }

# instructions STRETCHES
instructions() {
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$bench" --stretches "$1" 2>&1 |
    sed -n 's/.*Collected *: *\([0-9]*\).*/\1/p'
}

# What one stretch more takes: start and warm-up are in both.
one=$(instructions 1)
three=$(instructions 3)
per_decision=$(((three - one) / 2 / DECISIONS))
echo "$per_decision instructions per decision (500 unlike dispatches per envelope, 12 agents)"
((per_decision <= ${1:-per_decision})) || { echo "more than $1" >&2; exit 1; }
