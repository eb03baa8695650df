# The first process of a guest with a job. It mounts file systems and the tools, and defines what all cases need. The
# variables are above.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8
export GIT_AUTHOR_NAME=bench GIT_AUTHOR_EMAIL=bench@localhost GIT_COMMITTER_NAME=bench GIT_COMMITTER_EMAIL=bench@localhost
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=gc.auto GIT_CONFIG_VALUE_0=0   # nothing in the background
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
mkdir /run/share /run/data /tmp/tools

say() { printf '@bench %s\n' "$*"; }

# stage CASE COMMAND…: runs it between two marks, with a pause at each mark so that the host can read its counters.
stage() {
  local name=$1 from status; shift
  say begin "$name"
  sleep "$REST"
  from=$EPOCHREALTIME
  "$@" >/tmp/output 2>&1 </dev/null
  status=$?
  say end "$name" "$status" $((10#${EPOCHREALTIME/[.,]/} - 10#${from/[.,]/}))
  [ "$status" = 0 ] || say value "error:$name" "$(tail -n 1 /tmp/output)"
  sleep "$REST"
}

# tool COMMAND…: runs it in the tools' own Debian, which sees the same /run, /dev and /proc.
tool() { chroot /tmp/tools "$@"; }

# fio_case CASE OPTIONS…: runs a fio job, and prints its line of results.
fio_case() {
  local name=$1; shift
  stage "$name" tool fio --name="$name" --minimal --terse-version=3 --time_based --runtime="$TRANSFER_S" "$@"
  say value "fio:$name" "$(grep '^3;' /tmp/output | tail -n 1)"
}

# The first start of a program reads it from its disk, which is not to be measured.
warm_fio() { tool fio --name=warm --filename=/tmp/warm --size=4k --rw=read >/dev/null 2>&1; }

forget() { sync; echo 3 >/proc/sys/vm/drop_caches; }
rest_forever() { say done; while :; do sleep 1000; done; }

if [ -n "$TOOLS" ]; then
  mount -t erofs -o ro "$TOOLS" /tmp/tools
  mount --make-shared /run                                # later mounts appear in both
  mount --rbind /run /tmp/tools/run
  mount --rbind /dev /tmp/tools/dev
  mount -t proc proc /tmp/tools/proc
  mount -t tmpfs -o mode=1777 tmp /tmp/tools/tmp
fi
if [ -n "$HELPER" ]; then
  cat "$HELPER" >/tmp/helper
  chmod +x /tmp/helper
fi
