# shellcheck shell=bash
# The commands of ./dev that run something, most of them with a stack around it: setup, up, down, stack-run, demo, bench,
# chaos, simulate.
# Whatever ends this script ends what it started, except what `up` is asked to leave.

readonly UP_DIR=$ROOT/target/stack
# Folders of failed runs are kept to be looked into: the newest few.
readonly SCRATCH_KEPT=4
# The numbers of coordinators that `bench scale` measures where none is named.
readonly SCALE_COORDINATORS='1 2 3'

CHILD=''        # the command in the foreground
SCRATCH=''      # this run's own folder
INTERRUPTED=''
REST=()
# In the environment of every command this run starts, and so in that of all its descendants.
RUN_MARK=DEV_RUN=$$-$(random_hex 4)
readonly RUN_MARK

run_setup() {
  (($# == 0)) || die "setup takes no arguments"
  clean_up_at_exit
  setup_servers
  setup_python
  say "nats-server  $NATS_SERVER"
  say "redis-server $REDIS_SERVER"
  say "PostgreSQL   $POSTGRES_BIN"
}

run_up() {
  stack_options "$@"
  ((${#REST[@]} == 0)) || die "up does not know '${REST[0]}'"
  clean_up_at_exit
  setup_servers
  mkdir -p "$ROOT/target"
  exec 9>"$ROOT/target/stack.lock"
  flock -n 9 || die "another ./dev up or down of this folder is at work"

  local running known
  running=$(stack_up_count "$UP_DIR")
  known=$(compgen -G "$UP_DIR/run/*.supervisor" | wc -l) || known=0
  if ((running > 0 && running == known)); then
    say "the mesh is up already"
    print_where
    return
  fi
  if ((known > 0)); then
    say "the mesh was not stopped in order ($running of $known processes run); starting it anew on what it kept"
    stack_stop "$UP_DIR"
  fi
  [[ -n $STACK_SERVERS_ONLY ]] || build_release
  check_disk "$ROOT/target"
  STACK_LIVES_ON=yes
  PREFER_USUAL_PORTS=yes
  SCRATCH=$UP_DIR
  stack_start "$UP_DIR"
  SCRATCH=''
  print_where
}

run_down() {
  (($# == 0)) || die "down takes no arguments"
  mkdir -p "$ROOT/target"
  exec 9>"$ROOT/target/stack.lock"
  flock -n 9 || die "another ./dev up or down of this folder is at work"
  local running
  running=$(stack_up_count "$UP_DIR")
  stack_stop "$UP_DIR"
  (($(stack_up_count "$UP_DIR") == 0)) || die "some processes of $UP_DIR could not be stopped"
  rm -f "$UP_DIR/mesh.env"
  if ((running > 0)); then say "the mesh is down; what it kept is in $UP_DIR/data"; else say "the mesh was not up"; fi
}

run_in_stack() {
  stack_options "$@"
  ((${#REST[@]} > 0)) || die "stack-run needs a command after --"
  clean_up_at_exit
  setup_servers
  [[ -n $STACK_SERVERS_ONLY ]] || build_release
  in_scratch_stack "${REST[@]}"
}

run_demo() {
  local arguments=() argument scene=demo policy=mesh.toml
  for argument in "$@"; do
    if [[ $argument == --peak ]]; then
      scene=peak
      policy=peak.toml
    else
      arguments+=("$argument")
    fi
  done
  [[ -r $ROOT/examples/real-estate/$policy ]] && STACK_POLICY=$ROOT/examples/real-estate/$policy
  stack_options "${arguments[@]}"
  clean_up_at_exit
  setup_servers
  build_release
  in_scratch_stack "$ROOT/target/release/real-estate" "$scene" "${REST[@]}"
}

run_bench() {
  # Quotas far above what is measured; --policy takes another.
  [[ -r $ROOT/loadgen/mesh.toml ]] && STACK_POLICY=$ROOT/loadgen/mesh.toml
  # Coordinators are stopped and started between measurements; with one, shards lie on the same process each time.
  [[ ${1:-} != audit ]] || COORDINATORS=1
  stack_options "$@"
  [[ ${REST[0]:--} != -* ]] ||
    die "bench needs a scenario: throughput, latency, request, trace, scale, soak, audit, governance or report"
  if [[ ${REST[0]} == scale && " $* " != *' --coordinators'* && " $* " != *' --replicas'* ]]; then
    run_scale "$@"
    return
  fi
  clean_up_at_exit
  setup_servers
  build_release
  case ${REST[0]} in
    governance | report) run_child "$ROOT/target/release/loadgen" "${REST[@]}" ;;
    *)
      # For the scenario that stops and starts processes of its stack.
      export MESH_DEV=$ROOT/dev
      in_scratch_stack "$ROOT/target/release/loadgen" "${REST[@]}"
      ;;
  esac
}

# run_scale ARGUMENT...: the scenario on one stack after another, each with another number of coordinators, and one
# report of all.
run_scale() {
  local parts count status=0 files=() own=() all=()
  # Where the figures of all go is not where those of each stack go.
  while (($# > 0)); do
    case $1 in
      scale) ;;
      --json | --html) (($# >= 2)) || die "$1 needs a value"; all+=("$1" "$2") && shift ;;
      --json=* | --html=*) all+=("$1") ;;
      *) own+=("$1") ;;
    esac
    shift
  done
  parts=$(mktemp -d)
  clean_up_at_exit
  for count in $SCALE_COORDINATORS; do
    say "scale: $count coordinator(s)"
    run_child "$ROOT/dev" bench scale --coordinators "$count" "${own[@]}" --json "$parts/$count.json" || status=$?
    [[ ! -s $parts/$count.json ]] || files+=("$parts/$count.json")
  done
  ((${#files[@]} == 0)) || run_child "$ROOT/target/release/loadgen" scale "${all[@]}" --merge "${files[@]}" || status=$?
  rm -rf "$parts"
  exit "$status"
}

run_chaos() {
  STACK_POLICY=$ROOT/tests/chaos.toml
  COORDINATORS=3
  ARCHIVERS=2
  STACK_CHAOS=yes
  stack_options "$@"
  clean_up_at_exit
  setup_servers
  build_release
  in_scratch_stack "$ROOT/target/release/chaos" "${REST[@]}"
}

# Without arguments, as many seeds as ten minutes allow, other ones each time.
run_simulate() {
  clean_up_at_exit
  build_release
  (($# > 0)) || set -- --seconds 600 --seed "$(date +%s)" --log "$ROOT/target/events.jsonl"
  run_child "$ROOT/target/release/simulator" "$@"
}

# stack_options ARGUMENT...: takes what concerns the stack, leaves the others in REST. All after -- is left as it is.
stack_options() {
  REST=()
  local value
  while (($# > 0)); do
    case $1 in
      --)
        shift
        REST+=("$@")
        break
        ;;
      --servers-only) STACK_SERVERS_ONLY=yes ;;
      --small-disks) STACK_SMALL_DISKS=yes ;;
      --storage=* | --profile=* | --coordinators=* | --replicas=* | --nats-nodes=* | --policy=*) stack_option "${1%%=*}" "${1#*=}" ;;
      --storage | --profile | --coordinators | --replicas | --nats-nodes | --policy)
        (($# >= 2)) || die "$1 needs a value"
        value=$2
        stack_option "$1" "$value"
        shift
        ;;
      *) REST+=("$1") ;;
    esac
    shift
  done
}

stack_option() {
  case $1=$2 in
    --storage=file | --storage=memory) STACK_STORAGE=$2 ;;
    --profile=fast | --profile=no-loss) STACK_PROFILE=$2 ;;
    --coordinators=[1-9] | --replicas=[1-9]) COORDINATORS=$2 ;;
    --nats-nodes=1 | --nats-nodes=3) NATS_NODES=$2 ;;
    --policy=?*)
      [[ -r $2 ]] || die "there is no policy file $2"
      STACK_POLICY=$(realpath -- "$2")
      ;;
    --storage=*) die "--storage is file or memory, not '$2'" ;;
    --nats-nodes=*) die "--nats-nodes is 1 or 3, not '$2'" ;;
    --profile=*) die "--profile is fast or no-loss, not '$2'" ;;
    *) die "$1 is a number from 1 to 9, not '$2'" ;;
  esac
}

# in_scratch_stack COMMAND...: ends the script with the command's status.
in_scratch_stack() {
  mkdir -p "$ROOT/target"
  check_disk "$ROOT/target"
  forget_old_scratch
  SCRATCH=$(mktemp -d "$ROOT/target/scratch.XXXXXX")
  stack_start "$SCRATCH"
  load_env "$SCRATCH/mesh.env"
  # For examples in Python.
  export PYTHONPATH=$PYTHON_PACKAGES${PYTHONPATH:+:$PYTHONPATH}
  local status=0
  run_child "$@" || status=$?
  exit "$status"
}

forget_old_scratch() {
  local folder kept=0
  while IFS= read -r folder; do
    (($(stack_up_count "$folder") == 0)) || continue
    kept=$((kept + 1))
    ((kept < SCRATCH_KEPT)) || remove_scratch "$folder"
  done < <(find "$ROOT/target" -maxdepth 1 -name 'scratch.*' -type d -mmin +1 -printf '%T@ %p\n' | sort -rn | cut -d' ' -f2-)
}

remove_scratch() {
  [[ $1 == "$ROOT"/target/scratch.?* ]] || return 0
  # One that was killed hard has left its disks.
  release_disks "$1"
  rm -rf "$(readlink -f "$1/data")" "$1"
}

# run_child COMMAND...: in the foreground for the keyboard, in the background for bash, which else would look at a signal
# only after the command has ended.
run_child() {
  local command=(env '--default-signal=INT,QUIT' "$RUN_MARK")
  have setpriv && command+=(setpriv --pdeathsig KILL --)
  "${command[@]}" "$@" <&0 &
  CHILD=$!
  local status=0
  wait "$CHILD" || status=$?
  CHILD=''
  return "$status"
}

clean_up_at_exit() {
  trap clean_up EXIT
  trap 'interrupt 130' INT
  trap 'interrupt 143' TERM HUP
}

interrupt() {
  INTERRUPTED=yes
  trap - ERR
  exit "$1"
}

clean_up() {
  local status=$?
  set +e
  trap - ERR
  trap '' INT TERM HUP
  trap - EXIT
  allow_service_starts
  end_child
  [[ -n $SCRATCH ]] || exit "$status"
  stack_stop "$SCRATCH"
  if [[ $SCRATCH == "$UP_DIR" ]]; then
    rm -f "$UP_DIR/mesh.env"
  elif ((status == 0)) || [[ -n $INTERRUPTED ]]; then
    remove_scratch "$SCRATCH"
  else
    say "logs and data of this run are kept in $SCRATCH"
  fi
  exit "$status"
}

# Ends the command, then whatever it started and left.
end_child() {
  if [[ -n $CHILD ]]; then
    kill -TERM "$CHILD" 2>/dev/null
    wait_until 5 not alive "$CHILD" || kill -KILL "$CHILD" 2>/dev/null
    wait "$CHILD" 2>/dev/null
  fi
  signal_descendants TERM || return 0
  wait_until 3 not signal_descendants 0 || signal_descendants KILL
}

# signal_descendants SIGNAL: to all that was started by this run's commands; false when there is nothing.
signal_descendants() {
  local pids
  pids=$(grep -lzxF "$RUN_MARK" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3)
  [[ -n $pids ]] || return 1
  # shellcheck disable=SC2086  # one word per process
  kill -"$1" $pids 2>/dev/null || true
}

build_release() {
  local log status=0 notice
  log=$(mktemp)
  (sleep 3 && say "building the release binaries; the first time takes minutes") &
  notice=$!
  run_child cargo build --release --locked --workspace --bins --manifest-path "$ROOT/Cargo.toml" >"$log" 2>&1 || status=$?
  kill "$notice" 2>/dev/null || true
  if ((status != 0)); then
    grep -E -A12 '^error' "$log" | head -n 60 >&2 || tail -n 20 "$log" >&2
    rm -f "$log"
    die "the release build failed"
  fi
  rm -f "$log"
}

print_where() {
  load_env "$UP_DIR/mesh.env"
  cat <<END
nats          $MESH_NATS_URL (monitoring $MESH_NATS_MONITOR_URL)
redis         $MESH_REDIS_URL
postgres      ${MESH_POSTGRES_URL/:[0-9a-f]*@/:…@}
coordinators  ${MESH_COORDINATORS:-none}
settings      $UP_DIR/mesh.env (with the password)
logs          $UP_DIR/logs
data          $UP_DIR/data
END
}
