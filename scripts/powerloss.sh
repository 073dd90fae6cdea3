# shellcheck shell=bash
# ./dev powerloss: what is left of a mesh when everything stops at once and nothing that was not synced survives.
#
# The servers keep their data on an ext4 file system in a file behind a loop device. All processes are frozen and killed in
# one moment; the file is copied as it is then, which is what a disk would hold; the copy is mounted, its journal replayed,
# and the mesh started on it. What was accepted before is judged by `powerloss judge`.

readonly POWERLOSS_IMAGE_MB=1024
# So many dispatches are told as accepted before the cut, a third of them to an agent that is paused.
readonly POWERLOSS_ACCEPTED_MIN=1500
# So many of them were run by then, so that every step of a dispatch is cut somewhere.
readonly POWERLOSS_RUN_MIN=600

run_powerloss() {
  STACK_POLICY=$ROOT/tests/policy.toml
  STACK_PROFILE=no-loss
  stack_options "$@"
  local reason
  reason=$(can_loop) || die "powerloss is not possible here: $reason"
  clean_up_at_exit
  setup_servers
  build_release
  check_disk "$ROOT/target"
  forget_old_scratch
  SCRATCH=$(mktemp -d "$ROOT/target/scratch.XXXXXX")
  STACK_IMAGE_MB=$POWERLOSS_IMAGE_MB
  stack_start "$SCRATCH"
  load_env "$SCRATCH/mesh.env"
  # A mesh that has run for long: what it began with is on the disk.
  sync -f "$DATA"
  local books=$SCRATCH/books
  : >"$books"
  env "$RUN_MARK" setpriv --pdeathsig KILL -- "$ROOT/target/release/powerloss" load --books "$books" &
  local load=$!
  wait_until "$START_SECONDS" cut_is_due "$books" || die "the load does not flow; its books are $books"
  printf 'synced\n' >"$DATA/synced"
  sync "$DATA/synced"
  printf 'not synced\n' >"$DATA/unsynced"
  cut_power
  cp --sparse=always "$SCRATCH/disk.img" "$SCRATCH/after.img"
  kill -KILL "$load" 2>/dev/null || true
  wait "$load" 2>/dev/null || true
  come_back
  local status=0
  run_child "$ROOT/target/release/powerloss" judge --books "$books" "${REST[@]}" || status=$?
  exit "$status"
}

# cut_is_due BOOKS
cut_is_due() {
  local accepted ran
  accepted=$(grep -c '^accepted' "$1") || true
  ran=$(grep -c '^ran' "$1") || true
  ((accepted >= POWERLOSS_ACCEPTED_MIN && ran >= POWERLOSS_RUN_MIN))
}

# cut_power: nobody does anything more, not even end in order.
cut_power() {
  local pids name
  pids=$(cat "$STACK"/run/*.pid "$STACK"/run/*.supervisor)
  # PostgreSQL's own children, which would notice that it is gone.
  pids+=" $(pgrep -P "$(process_id postgres)" || true)"
  # shellcheck disable=SC2086  # one word per process
  kill -STOP $pids || true
  # shellcheck disable=SC2086
  kill -KILL $pids || true
  for name in $pids; do wait_until 30 not alive "$name" || die "process $name outlives SIGKILL"; done
}

# come_back: the machine is started again, with a disk that has what was synced.
come_back() {
  umount "$DATA" || umount --lazy "$DATA"
  mount -o "$LOOP_OPTIONS" "$SCRATCH/after.img" "$DATA"
  [[ $(cat "$DATA/synced" 2>/dev/null) == synced ]] || die "a file that was synced is gone: this machine's fsync does not sync"
  [[ ! -s $DATA/unsynced ]] || die "a file that was never synced is there: this shows nothing of a power loss"
  say "after the cut: what was synced is there, what was not is gone"
  # A lock by the number of a process says nothing after a start of the machine, and here its number may not be free yet.
  rm -f "$SCRATCH"/run/* "$DATA/postgres/postmaster.pid"
  stack_start "$SCRATCH"
  load_env "$SCRATCH/mesh.env"
}

# can_loop: says why not, where not.
can_loop() {
  local folder status=0
  can_mount || return 1
  have mkfs.ext4 || { printf 'mkfs.ext4 is missing\n'; return 1; }
  folder=$(mktemp -d)
  truncate -s 4M "$folder/image"
  if mkfs.ext4 -q -F "$folder/image" && mount -o "$LOOP_OPTIONS" "$folder/image" "$folder" 2>/dev/null; then
    umount "$folder"
  else
    printf 'this machine has no loop devices or no ext4\n'
    status=1
  fi
  rm -rf "$folder"
  return "$status"
}
