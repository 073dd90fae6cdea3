#!/usr/bin/env bash
# The system tests that ./dev test runs against a broker of three nodes.
set -uo pipefail

readonly TESTS=(cargo test -p mesh-tests --release --locked --no-fail-fast)

status=0
"${TESTS[@]}" --test fences || status=$?
"${TESTS[@]}" --test mesh -- calls:: || status=$?
"${TESTS[@]}" --test crashes || status=$?
exit "$status"
