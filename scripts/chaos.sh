# shellcheck shell=bash
# What a stack has besides when it is there to be broken: a disk of its own for each server, a network that can be cut, two
# archivers, and agents as processes. It is a part of stack.sh.

STACK_CHAOS=''              # non-empty: this stack is there to be broken
ARCHIVERS=1
# As many as the chaos program knows.
readonly CHAOS_CREWS=4
# More than a server needs in a run; the file behind it has holes where nothing was written.
readonly CHAOS_DISK_SIZE=6G

# Everything of the mesh that connects to a server, by its name.
chaos_clients() {
  local index
  for ((index = 0; index < COORDINATORS; index++)); do printf 'coordinator-%s ' "$index"; done
  for ((index = 0; index < ARCHIVERS; index++)); do printf '%s ' "$(archiver_name "$index")"; done
  for ((index = 0; index < CHAOS_CREWS; index++)); do printf 'crew-%s ' "$index"; done
  printf 'senders'
}

archiver_name() { if (($1 == 0)); then printf audit-archiver; else printf 'audit-archiver-%s' "$1"; fi; }

# each_archiver COMMAND
each_archiver() {
  local index
  for ((index = 0; index < ARCHIVERS; index++)); do "$1" "$(archiver_name "$index")"; done
}

each_crew() {
  local index
  for ((index = 0; index < CHAOS_CREWS; index++)); do "$1" "crew-$index"; done
}

# env_of NAME: the environment that leads a process to its servers, through the proxy where there is one.
env_of() { if [[ -e $STACK/$1.env ]]; then printf '%s' "$STACK/$1.env"; else printf '%s' "$STACK/mesh.env"; fi; }

# The two parts of it that are programs.
launch_proxy() {
  probe_with proxy
  # shellcheck disable=SC2046  # one word per client
  supervise proxy TERM '' "$ROOT/scripts/with-env.sh" "$STACK/mesh.env" "$ROOT/target/release/chaos" proxy $(chaos_clients)
}

launch_crew() {
  probe_with "$1"
  supervise "$1" TERM '' "$ROOT/scripts/with-env.sh" "$(env_of "$1")" "$ROOT/target/release/chaos" crew "${1#crew-}"
}

# make_disk NAME: a file system of its own under the folder of a server. Where nothing can be mounted there is none, and the
# chaos program says that it fills no disk.
make_disk() {
  local folder=$DATA/$1 image=$DATA/$1.disk
  mkdir -p "$folder"
  ((EUID == 0)) && have mkfs.ext4 || return 0
  truncate -s "$CHAOS_DISK_SIZE" "$image"
  # Nothing reserved for root, who fills it. No journal: no power is lost here.
  mkfs.ext4 -q -F -m 0 -O ^has_journal "$image" >>"$STACK/logs/disks.log" 2>&1 || return 0
  mount -o loop "$image" "$folder" >>"$STACK/logs/disks.log" 2>&1 || { rm -f "$image"; return 0; }
  rmdir "$folder/lost+found"
}
