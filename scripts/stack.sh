# shellcheck shell=bash
# One stack: nats-server or a cluster of three, Redis, PostgreSQL, coordinators and the archiver, in one folder, on loopback
# ports of their own.
#
#   STACK/mesh.env    how to reach it            STACK/run/NAME.{pid,ready,hold,…}   see supervise.sh
#   STACK/logs/       one file per process       STACK/data/                         what the servers keep
#
# Each process has a supervisor. In a stack that lives as long as one command, supervisors are killed with the command's
# shell, and processes with their supervisors, whatever kills the shell.

STACK=''
DATA=''                     # STACK/data with links resolved
STACK_LIVES_ON=''           # non-empty: the stack stays when this script ends
STACK_SERVERS_ONLY=${STACK_SERVERS_ONLY:-}
STACK_STORAGE=${STACK_STORAGE:-file}
STACK_PROFILE=${STACK_PROFILE:-fast}
STACK_POLICY=${STACK_POLICY:-$ROOT/mesh.toml}
COORDINATORS=${COORDINATORS:-2}
NATS_NODES=${NATS_NODES:-1}
# Non-empty: each server has a file system of its own that is soon full.
STACK_SMALL_DISKS=${STACK_SMALL_DISKS:-}
# Non-empty: all servers keep their data in one file, STACK/disk.img, of so many MB.
STACK_IMAGE_MB=${STACK_IMAGE_MB:-}

readonly START_SECONDS=60
readonly START_TRIES=3
# What a stack needs to come up and run a demo; below it the servers fail one after another in ways hard to read.
readonly DISK_KB_MINIMUM=$((1024 * 1024))
# What a server needs for a short test; PostgreSQL begins with a cluster of 40 MB and keeps its log in files of 16 MB.
readonly SMALL_DISK_MB=96 SMALL_POSTGRES_DISK_MB=256
# The journal commits when somebody syncs, and hardly ever by itself.
readonly LOOP_OPTIONS=loop,commit=600,noatime

REDIS_PORT='' POSTGRES_PORT=''
# One of each for each node of the broker; a broker of one node has no routes.
NATS_PORTS=() NATS_MONITOR_PORTS=() NATS_ROUTE_PORTS=()
COORDINATOR_PORTS=()
STACK_NAME=''
DATABASE_PASSWORD=''
SERVER_USER=''
PREFER_USUAL_PORTS=''

# stack_start FOLDER: everything up and ready, mesh.env written.
stack_start() {
  STACK=$1
  STACK_NAME=mesh-$(random_hex 4)
  mkdir -p "$STACK"/{run,logs}
  chmod 755 "$STACK" "$STACK/run" "$STACK/logs"
  choose_server_user
  prepare_data
  ulimit -n "$(ulimit -Hn)" 2>/dev/null || true

  choose_nats_ports
  each_nats launch
  launch redis
  prepare_postgres
  launch postgres
  each_nats settle
  settle redis
  settle postgres
  create_database

  prepare_mesh
  write_env
  [[ -n $STACK_SERVERS_ONLY ]] && return
  if [[ -n $STACK_CHAOS ]]; then launch proxy && settle proxy; fi
  local index
  for ((index = 0; index < COORDINATORS; index++)); do launch "coordinator-$index"; done
  each_archiver launch
  for ((index = 0; index < COORDINATORS; index++)); do settle "coordinator-$index"; done
  each_archiver settle
  if [[ -n $STACK_CHAOS ]]; then each_crew launch && each_crew settle; fi
}

# stack_stop FOLDER: the mesh first, so that it can finish what it holds, then the servers.
stack_stop() {
  local run=$1/run name
  [[ -d $run ]] || return 0
  local crew=() mesh=() archiver=() servers=()
  for name in "$run"/*.supervisor; do
    [[ -e $name ]] || continue
    name=${name##*/}
    name=${name%.supervisor}
    case $name in
      crew-*) crew+=("$name") ;;
      coordinator-*) mesh+=("$name") ;;
      audit-archiver*) archiver+=("$name") ;;
      *) servers+=("$name") ;;
    esac
  done
  stop_supervised "$1" "${crew[@]}"
  stop_supervised "$1" "${mesh[@]}"
  stop_supervised "$1" "${archiver[@]}"
  stop_supervised "$1" "${servers[@]}"
  release_disks "$1"
}

# stop_supervised FOLDER NAME...
stop_supervised() {
  local stack=$1 name
  shift
  for name in "$@"; do
    supervised "$stack" "$name" && kill -TERM "$(<"$stack/run/$name.supervisor")" 2>/dev/null
  done
  for name in "$@"; do
    wait_until 30 not supervised "$stack" "$name" || kill -KILL "$(<"$stack/run/$name.supervisor")" 2>/dev/null
    rm -f "$stack/run/$name".*
  done
}

not() { ! "$@"; }

# supervised FOLDER NAME: its supervisor runs, and is really one, not somebody who was given its number.
supervised() {
  local pid
  pid=$(cat "$1/run/$2.supervisor" 2>/dev/null) || return 1
  alive "$pid" && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "supervise.sh $1 $2 "
}

# stack_up_count FOLDER: how many supervisors run.
stack_up_count() {
  local file name count=0
  for file in "$1"/run/*.supervisor; do
    name=${file##*/}
    supervised "$1" "${name%.supervisor}" && count=$((count + 1))
  done
  printf '%s' "$count"
}

check_disk() {
  local free
  free=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
  ((free >= DISK_KB_MINIMUM)) ||
    die "the disk that holds $1 has $((free / 1024)) MB free; the stack needs $((DISK_KB_MINIMUM / 1024)) MB"
}

# Root starts the servers as somebody who may do nothing.
choose_server_user() {
  SERVER_USER=''
  ((EUID == 0)) || return 0
  SERVER_USER=nobody
  id postgres >/dev/null 2>&1 && SERVER_USER=postgres
  return 0
}

as_server_user() {
  if [[ -n $SERVER_USER ]]; then
    setpriv --reuid "$SERVER_USER" --regid "$(id -g "$SERVER_USER")" --init-groups -- "$@"
  else
    "$@"
  fi
}

# The servers' folders, somewhere the user that runs them can reach.
prepare_data() {
  DATA=$STACK/data
  [[ -L $DATA && ! -d $DATA ]] && rm -f "$DATA"
  mkdir -p "$DATA"
  if ! as_server_user test -x "$DATA"; then
    rmdir "$DATA"
    ln -s "$(mktemp -d "/var/tmp/$STACK_NAME.XXXXXX")" "$DATA"
    say "the user $SERVER_USER cannot reach $STACK; the servers keep their data in $(readlink "$DATA")"
  fi
  DATA=$(readlink -f "$DATA")
  [[ -z $STACK_IMAGE_MB ]] || mount_image
  chmod 755 "$DATA"
  remember_nats_nodes
  local server
  for server in $(each_nats echo) redis postgres; do
    mkdir -p "$DATA/$server"
    [[ -z $STACK_CHAOS ]] || make_disk "$server"
    [[ -z $STACK_SMALL_DISKS ]] || mount_small_disk "$server"
    own "$DATA/$server"
  done
  install -m 644 "$ROOT"/deploy/{nats,redis,postgresql}.conf "$DATA"
  as_server_user test -x "$NATS_SERVER" && return
  install -m 755 "$NATS_SERVER" "$DATA/nats-server"
  NATS_SERVER=$DATA/nats-server
}

# mount_image: the data folder, in a file behind a loop device.
mount_image() {
  local image=$STACK/disk.img
  mountpoint -q "$DATA" && return
  truncate -s "${STACK_IMAGE_MB}M" "$image"
  mkfs.ext4 -q -F "$image"
  mount -o "$LOOP_OPTIONS" "$image" "$DATA" || die "the image $image could not be mounted; that needs root and loop devices"
}

# mount_small_disk SERVER: its folder, on a file system that holds nothing else.
mount_small_disk() {
  local mb=$SMALL_DISK_MB
  [[ $1 != postgres ]] || mb=$SMALL_POSTGRES_DISK_MB
  mountpoint -q "$DATA/$1" || mount -t tmpfs -o "size=${mb}m" "$STACK_NAME" "$DATA/$1" ||
    die "a file system for $1 could not be mounted; --small-disks needs root and a kernel that lets it mount"
}

# release_disks FOLDER: unmounts whatever a stack has mounted below its data; a folder without mounts is left as it is.
release_disks() {
  local data mounted
  data=$(readlink -f "$1/data") || return 0
  while IFS= read -r mounted; do
    umount "$mounted" || umount --lazy "$mounted" || true
  done < <(awk -v under="$data" 'index($2, under) == 1 { print $2 }' /proc/self/mounts | sort -r)
}

# can_mount: says why not, where not.
can_mount() {
  local folder
  ((EUID == 0)) || { printf 'mounting needs root\n'; return 1; }
  folder=$(mktemp -d)
  if mount -t tmpfs -o size=1m mesh "$folder" 2>/dev/null; then
    umount "$folder"
    rmdir "$folder"
    return
  fi
  rmdir "$folder"
  printf 'this machine lets nobody mount a file system\n'
  return 1
}

# A node's data is of no use to a broker with another number of them.
remember_nats_nodes() {
  local file=$DATA/nats.nodes before
  before=$(cat "$file" 2>/dev/null) || if [[ -d $DATA/nats ]]; then before=1; else before=$NATS_NODES; fi
  ((before == NATS_NODES)) ||
    die "the broker of $DATA has $before nodes; start it with --nats-nodes $before, or remove the folder to start anew"
  printf '%s\n' "$NATS_NODES" >"$file"
}

# each_nats COMMAND: with the name of each node.
each_nats() {
  local index
  ((NATS_NODES > 1)) || { "$1" nats; return; }
  for ((index = 0; index < NATS_NODES; index++)); do "$1" "nats-$index"; done
}

own() {
  chmod 700 "$1"
  [[ -z $SERVER_USER ]] || chown "$SERVER_USER" "$1"
}

# launch NAME: chooses its ports and starts it; settle waits for it.
launch() {
  rm -f "$STACK/run/$1".*
  case $1 in
    nats | nats-*) launch_nats "$1" ;;
    redis) launch_redis ;;
    postgres) launch_postgres ;;
    coordinator-*) launch_coordinator "${1#coordinator-}" ;;
    audit-archiver*) launch_archiver "$1" ;;
    proxy) launch_proxy ;;
    crew-*) launch_crew "$1" ;;
    *) die "no process is called $1" ;;
  esac
}

usual() { [[ -z $PREFER_USUAL_PORTS ]] || printf '%s' "$1"; }

# All before the first node starts, since each is told where the others are.
choose_nats_ports() {
  local index
  for ((index = 0; index < NATS_NODES; index++)); do
    choose_port "NATS_PORTS[$index]" "$(usual $((4222 + index)))"
    choose_port "NATS_MONITOR_PORTS[$index]" "$(usual $((8222 + index)))"
    ((NATS_NODES == 1)) || choose_port "NATS_ROUTE_PORTS[$index]" "$(usual $((6222 + index)))"
  done
}

# launch_nats NAME
launch_nats() {
  local name=$1 index=${1#nats} sync=2m server_name=$STACK_NAME cluster=() routes port
  index=${index#-}
  index=${index:-0}
  [[ $STACK_PROFILE == no-loss ]] && sync=always
  # Ports somebody took since they were chosen. The other nodes hear of new ones from this one.
  for port in NATS_PORTS NATS_MONITOR_PORTS NATS_ROUTE_PORTS; do
    local -n ports=$port
    [[ -z ${ports[index]:-} ]] || ! port_taken "${ports[index]}" || choose_port "$port[$index]"
  done
  if ((NATS_NODES > 1)); then
    server_name=$STACK_NAME-$index
    routes=$(printf ',nats://127.0.0.1:%s' "${NATS_ROUTE_PORTS[@]}")
    cluster=(--cluster "nats://127.0.0.1:${NATS_ROUTE_PORTS[index]}" --cluster_name "$STACK_NAME" --routes "${routes#,}")
    # Clients that hear where the other nodes are would go past the proxy.
    [[ -z $STACK_CHAOS ]] || cluster+=(--no_advertise)
  fi
  probe_with "$name" "${NATS_PORTS[index]}" "${NATS_MONITOR_PORTS[index]}" "$server_name"
  supervise "$name" TERM "$SERVER_USER" env "MESH_NATS_SYNC_INTERVAL=$sync" "$NATS_SERVER" -c "$DATA/nats.conf" \
    -a 127.0.0.1 -p "${NATS_PORTS[index]}" -m "${NATS_MONITOR_PORTS[index]}" -sd "$DATA/$name" -n "$server_name" \
    "${cluster[@]}"
}

launch_redis() {
  choose_port REDIS_PORT "$(usual 6379)"
  probe_with redis "$REDIS_PORT"
  supervise redis TERM "$SERVER_USER" "$REDIS_SERVER" "$DATA/redis.conf" --bind 127.0.0.1 --port "$REDIS_PORT" \
    --dir "$DATA/redis" --daemonize no --logfile '' --pidfile ''
}

# A cluster of its own with a password of its own, which also tells it from any other server on the port.
prepare_postgres() {
  local data=$DATA/postgres secret=$STACK/postgres.password
  [[ -e $DATA/postgres.made ]] || make_cluster "$data" "$secret"
  [[ -s $secret ]] || die "the password $secret of $data is gone; remove the folder to start anew"
  DATABASE_PASSWORD=$(<"$secret")
  local version
  version=$("$POSTGRES_BIN/postgres" --version | sed -n 's/.*) \([0-9]*\).*/\1/p')
  [[ $(<"$data/PG_VERSION") == "$version" ]] ||
    die "$data was made by PostgreSQL $(<"$data/PG_VERSION") and the one here is $version; remove the folder to start anew"
}

make_cluster() {
  local data=$1 secret=$2 readable=$DATA/postgres.password status=0
  rm -f "$DATA/postgres.made"
  mkdir -p "$data"
  # The folder itself may be a file system.
  find "${data:?}" -mindepth 1 -delete
  own "$data"
  (umask 077 && random_hex 16 >"$secret")
  # initdb reads the password as the servers' user, who cannot read the secret itself.
  install -m 600 ${SERVER_USER:+-o "$SERVER_USER"} "$secret" "$readable"
  as_server_user env LC_ALL=C "$POSTGRES_BIN/initdb" --pgdata "$data" --username mesh --pwfile "$readable" \
    --auth scram-sha-256 --encoding UTF8 --locale C --no-sync --no-instructions >"$STACK/logs/initdb.log" 2>&1 || status=$?
  rm -f "$readable"
  ((status == 0)) || fail_with_log initdb "PostgreSQL's initdb failed"
  touch "$DATA/postgres.made"
}

launch_postgres() {
  choose_port POSTGRES_PORT "$(usual 5432)"
  probe_with postgres "$POSTGRES_PORT"
  # Without Unix sockets there is no path to be too long and no folder to fight over.
  supervise postgres INT "$SERVER_USER" "$POSTGRES_BIN/postgres" -D "$DATA/postgres" \
    -c config_file="$DATA/postgresql.conf" -c hba_file="$DATA/postgres/pg_hba.conf" \
    -c ident_file="$DATA/postgres/pg_ident.conf" -c listen_addresses=127.0.0.1 -c port="$POSTGRES_PORT" \
    -c unix_socket_directories=
}

query() {
  PGPASSWORD=$DATABASE_PASSWORD PGCONNECT_TIMEOUT=2 \
    "$POSTGRES_BIN/psql" -X -h 127.0.0.1 -p "$POSTGRES_PORT" -U mesh -d "$1" -Atqc "$2" 2>/dev/null
}

create_database() {
  [[ $(query postgres "SELECT 1 FROM pg_database WHERE datname = 'mesh'") == 1 ]] ||
    query postgres 'CREATE DATABASE mesh' || fail_with_log postgres "the database could not be made"
}

# What the mesh's own processes need besides the servers.
prepare_mesh() {
  [[ -s $STACK/audit.key ]] || (umask 077 && random_hex 32 >"$STACK/audit.key")
  [[ -s $STACK/checkpoint.key ]] || (umask 077 && random_hex 32 >"$STACK/checkpoint.key")
  [[ -n $STACK_SERVERS_ONLY || -s $STACK/checkpoint.pub ]] ||
    "$ROOT/target/release/audit-archiver" checkpoint-key --checkpoint-key-file "$STACK/checkpoint.key" >"$STACK/checkpoint.pub"
  [[ -n $STACK_SERVERS_ONLY || -r $STACK_POLICY ]] || die "there is no policy file $STACK_POLICY"
  COORDINATOR_PORTS=()
  [[ -n $STACK_SERVERS_ONLY ]] && return
  local index
  for ((index = 0; index < COORDINATORS; index++)); do
    choose_port "COORDINATOR_PORTS[$index]" "$(usual $((7070 + index)))"
  done
}

launch_coordinator() {
  local name=coordinator-$1
  # A port somebody took since it was chosen.
  port_taken "${COORDINATOR_PORTS[$1]}" && choose_port "COORDINATOR_PORTS[$1]"
  write_env
  probe_with "$name" "${COORDINATOR_PORTS[$1]}"
  supervise "$name" TERM '' "$ROOT/scripts/with-env.sh" "$(env_of "$name")" "MESH_HTTP=127.0.0.1:${COORDINATOR_PORTS[$1]}" \
    "MESH_HTTP_ADDR_FILE=$STACK/run/$name.addr" "$ROOT/target/release/coordinator"
}

launch_archiver() {
  probe_with "$1"
  supervise "$1" TERM '' "$ROOT/scripts/with-env.sh" "$(env_of "$1")" MESH_HTTP=127.0.0.1:0 \
    "MESH_HTTP_ADDR_FILE=$STACK/run/$1.addr" "$ROOT/target/release/audit-archiver"
}

probe_with() {
  local name=$1
  shift
  printf '%s\n' "$*" >"$STACK/run/$name.probe"
}

# probe NAME: it is ready, and it is ours.
probe() {
  local a b c
  read -r a b c <"$STACK/run/$1.probe" || true
  case $1 in
    nats) nats_is "$a" "$c" && http_ok "$b" '/healthz?js-enabled-only=true' ;;
    # It has caught up, and follows or leads: for a cluster that begins, a leader is elected.
    nats-*) nats_is "$a" "$c" && http_ok "$b" /healthz ;;
    redis) [[ $(redis_process "$a") == "$(process_id redis)" ]] ;;
    postgres) POSTGRES_PORT=$a DATABASE_PASSWORD=$(<"$STACK/postgres.password") query postgres 'SELECT 1' >/dev/null ;;
    coordinator-*) [[ -s $STACK/run/$1.addr ]] && http_ok "$a" /readyz ;;
    audit-archiver*)
      [[ -s $STACK/run/$1.addr ]] || return 1
      a=$(<"$STACK/run/$1.addr")
      http_ok "${a##*:}" /readyz
      ;;
    # They write where they are, or that they are registered.
    proxy | crew-*) [[ -s $STACK/run/$1.addr ]] ;;
  esac
}

# nats_is PORT NAME: the server on a port has this name.
nats_is() { [[ $(first_line "$1") == *"\"server_name\":\"$2\""* ]]; }

process_id() { cat "$STACK/run/$1.pid" 2>/dev/null; }

# supervise NAME SIGNAL USER COMMAND...: starts it; USER may be empty.
supervise() {
  local name=$1 signal=$2 user=$3
  shift 3
  # Children of a shell without job control ignore the keyboard's signals; these must not inherit that.
  local command=(env '--default-signal=INT,QUIT') supervisor=(setsid)
  if have setpriv; then
    local death=KILL
    [[ $signal == INT ]] && death=INT
    command+=(setpriv --pdeathsig "$death")
    [[ -z $user ]] || command+=(--reuid "$user" --regid "$(id -g "$user")" --init-groups)
    command+=(--)
    [[ -n $STACK_LIVES_ON ]] || supervisor+=(setpriv --pdeathsig KILL --)
  fi
  "${supervisor[@]}" bash "$ROOT/scripts/supervise.sh" "$STACK" "$name" "$signal" "${command[@]}" "$@" \
    </dev/null >/dev/null 2>&1 9>&- &
  printf '%s\n' "$!" >"$STACK/run/$name.supervisor"
  disown
}

# settle NAME: waits until it is ready; another process that was quicker on its port means another port.
settle() {
  local try
  for ((try = 1; try <= START_TRIES; try++)); do
    if wait_until "$START_SECONDS" ready_or_ended "$1" && [[ -e $STACK/run/$1.ready ]]; then
      return
    fi
    supervised "$STACK" "$1" && fail_with_log "$1" "$1 was not ready after $START_SECONDS s"
    tail -n 20 "$STACK/logs/$1.log" | grep -qi 'address already in use' || break
    launch "$1"
  done
  fail_with_log "$1" "$1 could not start"
}

ready_or_ended() {
  supervised "$STACK" "$1" || return 0
  [[ -e $STACK/run/$1.pid ]] && probe "$1" && touch "$STACK/run/$1.ready"
}

# fail_with_log NAME SENTENCE
fail_with_log() {
  say "the last lines of $STACK/logs/$1.log:"
  tail -n 15 "$STACK/logs/$1.log" 2>/dev/null | sed 's/^/  /' >&2
  die "$2"
}

write_env() {
  local urls='' nats monitors port sync=default
  nats=$(printf ',nats://127.0.0.1:%s' "${NATS_PORTS[@]}")
  monitors=$(printf ',http://127.0.0.1:%s' "${NATS_MONITOR_PORTS[@]}")
  for port in "${COORDINATOR_PORTS[@]}"; do urls+=",http://127.0.0.1:$port"; done
  [[ $STACK_PROFILE == no-loss ]] && sync=always
  (
    umask 077
    cat >"$STACK/mesh.env.new" <<END
MESH_NATS_URL=${nats#,}
MESH_NATS_MONITOR_URL=${monitors#,}
MESH_REDIS_URL=redis://127.0.0.1:$REDIS_PORT
MESH_POSTGRES_URL=postgres://mesh:$DATABASE_PASSWORD@127.0.0.1:$POSTGRES_PORT/mesh
MESH_POLICY=$STACK_POLICY
MESH_AUDIT_KEY_FILE=$STACK/audit.key
MESH_CHECKPOINTS=$STACK/checkpoints
MESH_CHECKPOINT_KEY_FILE=$STACK/checkpoint.key
MESH_CHECKPOINT_PUBLIC_KEY=$STACK/checkpoint.pub
MESH_STORAGE=$STACK_STORAGE
MESH_STREAM_REPLICAS=$NATS_NODES
MESH_COORDINATORS=${urls#,}
MESH_NATS_SYNC=$sync
MESH_REDIS_FSYNC=always
MESH_STACK_DIR=$STACK
MESH_COMMIT=$(git -C "$ROOT" rev-parse --short=12 HEAD 2>/dev/null || printf unknown)
END
  )
  mv "$STACK/mesh.env.new" "$STACK/mesh.env"
}

# load_env FILE: into this shell's environment. Values are taken as they stand, not as shell text.
load_env() {
  local line
  while IFS= read -r line; do
    [[ $line == [A-Z]*=* ]] && export "${line?}"
  done <"$1"
}

# stack_pause FOLDER NAME [SIGNAL]: kills a process and keeps it down until stack_resume.
stack_pause() {
  STACK=$1
  local pid
  supervised "$STACK" "$2" || die "$2 does not run in $STACK"
  touch "$STACK/run/$2.hold"
  pid=$(process_id "$2") || return 0
  kill -"${3:-KILL}" "$pid" 2>/dev/null || true
  wait_until 30 not alive "$pid" || die "$2 still runs 30 s after signal ${3:-KILL}"
}

# stack_resume FOLDER NAME
stack_resume() {
  STACK=$1
  supervised "$STACK" "$2" || die "$2 is not supervised in $STACK"
  rm -f "$STACK/run/$2.hold"
  wait_until "$START_SECONDS" running_and_ready "$2" || fail_with_log "$2" "$2 was not ready after $START_SECONDS s"
}

running_and_ready() { [[ -e $STACK/run/$1.pid ]] && probe "$1"; }
