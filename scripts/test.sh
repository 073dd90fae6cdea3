# shellcheck shell=bash
# ./dev test: everything CI runs, one stage after another, a time for each and one line at the end.

PASSED=0
FAILED=0
SUMMARY=()

run_test() {
  (($# == 0)) || die "test takes no arguments"
  clean_up_at_exit
  setup_servers
  setup_python
  cd "$ROOT" || die "$ROOT is gone"
  local logs=$ROOT/target/test-logs
  rm -rf "$logs"
  mkdir -p "$logs"

  stage format "$logs" cargo fmt --all --check || true
  # One profile for all stages, so that dependencies are compiled once; the checks of a debug build are added to what is ours.
  local checked=(--release --config "$ROOT/scripts/checked.toml" --workspace --locked)
  stage lints "$logs" cargo clippy "${checked[@]}" --all-targets -- -D warnings || true
  stage unit "$logs" cargo test "${checked[@]}" --exclude mesh-tests --no-fail-fast || true
  if stage build "$logs" cargo build --release --locked --workspace --bins; then
    # Most system tests wait most of the time, so that more of them than there are cores run side by side.
    stage system "$logs" "$ROOT/dev" stack-run --policy "$ROOT/tests/policy.toml" --coordinators 2 -- \
      env RUST_TEST_THREADS=8 cargo test -p mesh-tests --release --locked --no-fail-fast || true
    stage simulate "$logs" "$ROOT/target/release/simulator" --seed 1 --seeds 200 || true
    stage sawtooth "$logs" "$ROOT/target/release/simulator" --scene sawtooth --faults none --seed 1 --seeds 10 || true
    # The way of a dispatch, and what is lost or stands still. Not all of them: in a cluster each consumer is a group of its own
    # that elects and beats, and the agents of all tests together are more than three nodes on one small machine hold.
    stage cluster "$logs" "$ROOT/dev" stack-run --policy "$ROOT/tests/policy.toml" --coordinators 2 --nats-nodes 3 -- \
      "$ROOT/scripts/cluster-tests.sh" || true
    disks_stage "$logs"
    powerloss_stage "$logs"
    compose_stage "$logs"
  fi

  printf '\n'
  printf '%s\n' "${SUMMARY[@]}"
  printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
  if ((FAILED > 0)); then
    say "the output of each stage is in $logs"
    exit 1
  fi
}

# stage NAME LOGS COMMAND...: runs it, counts the tests it reports; a stage that fails otherwise counts as one failure.
stage() {
  local name=$1 log=$2/$1.log started=$SECONDS status=0 passed failed out writer
  shift 2
  printf '\n== %s: %s\n' "$name" "$*"
  exec {out}> >(exec tee "$log")
  writer=$!
  run_child "$@" >&"$out" 2>&1 {out}>&- || status=$?
  exec {out}>&-
  wait "$writer" || true

  read -r passed failed < <(count_tests "$log")
  ((status == 0 || failed > 0)) || failed=1
  PASSED=$((PASSED + passed))
  FAILED=$((FAILED + failed))
  local verdict=ok
  ((failed == 0)) || verdict=FAILED
  SUMMARY+=("$(printf '%-8s %-6s %4d s  %d passed, %d failed' "$name" "$verdict" $((SECONDS - started)) "$passed" "$failed")")
  printf '== %s: %s in %d s\n' "$name" "$verdict" $((SECONDS - started))
  ((failed == 0))
}

# count_tests LOG: the sum of what cargo's test harness reports.
count_tests() {
  sed -n 's/^test result: .* \([0-9][0-9]*\) passed; \([0-9][0-9]*\) failed.*/\1 \2/p' "$1" |
    awk '{ passed += $1; failed += $2 } END { print passed + 0, failed + 0 }'
}

# Disks are filled where small ones can be mounted.
disks_stage() {
  local reason
  if reason=$(can_mount); then
    stage disks "$1" "$ROOT/dev" stack-run --small-disks --policy "$ROOT/tests/policy.toml" --coordinators 2 -- \
      cargo test -p mesh-tests --release --locked --no-fail-fast --test disks || true
  else
    skip disks "$reason"
  fi
}

# Power is cut where a disk can be made of a file.
powerloss_stage() {
  local reason
  if reason=$(can_loop); then
    stage powerloss "$1" "$ROOT/dev" powerloss || true
  else
    skip powerloss "$reason"
  fi
}

# skip NAME REASON: says so at its place and at the end.
skip() {
  SUMMARY+=("$(printf '%-8s %-6s %s' "$1" skipped "$2")")
  printf '\n== %s: skipped, %s\n' "$1" "$2"
}

# The containers are tested where there is an engine to test them with.
compose_stage() {
  local reason
  if reason=$("$ROOT/tests/compose/run" --can-run 2>&1); then
    stage compose "$1" "$ROOT/tests/compose/run"
  else
    skip compose "$reason"
  fi
}
