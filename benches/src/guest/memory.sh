# Memory under load: a build and its cleanup, if there is a project. Then the helper takes as much as the host asks for.
mount -t ext4 -o discard,noatime /dev/vda /run/data
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mount -t debugfs debugfs /sys/kernel/debug

# A guest of garret also has swap in compressed memory, and the agent's reclaim loop.
if [ -n "$RECLAIM" ]; then
  read -r _ kib _ </proc/meminfo
  echo "${kib}K" >/sys/block/zram0/disksize
  mkswap --quiet /dev/zram0 && swapon --priority 100 --discard /dev/zram0 || say value error "no swap in zram"
  echo 100 >/proc/sys/vm/swappiness
  echo 0 >/proc/sys/vm/page-cluster
  (/usr/lib/garret/garret-agent memory-loop >/tmp/loop 2>&1
    say value error "garret-agent memory-loop ended: $(tail -n 1 /tmp/loop)") &
fi

# The work has a control group of its own, as a container has.
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/work
echo 0 >/sys/fs/cgroup/work/cgroup.procs
/tmp/helper guest serve --vsock 5000 &

if [ -n "$PROJECT" ]; then
  mkdir /run/data/project
  tar -x -f "$PROJECT" -C /run/data/project --strip-components=1
  # The first start of a program reads it from its disk, which is not to be measured.
  echo 'int main(void) { return 0; }' >/tmp/tools/tmp/warm.c
  tool make --version >/dev/null
  tool gcc -O1 /tmp/warm.c -o /tmp/warm || say value error "the compiler does not work"
fi
sleep "$REST"
say ready
if [ -n "$PROJECT" ]; then
  stage build tool make -s -C /run/data/project -j "$(nproc)" "$GOAL"
  stage clean sh -c 'rm -rf /run/data/project && sync'
fi
rest_forever
