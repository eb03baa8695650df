# Memory that a program takes and gives back, then a build and its cleaning up; the host watches.
mount -t ext4 -o discard,noatime /dev/vda /run/data
say ready
sleep 3
stage fill /tmp/helper guest fill "$FILL_MIB"
sleep "$SETTLE_S"
if [ -n "$TOOLS" ]; then
  mkdir -p /run/data/c
  tar -x -f /tmp/tools/opt/bench/c.tar -C /run/data/c --strip-components=1
  stage build tool make -C /run/data/c -j "$(nproc)" linux
  stage clean tool make -C /run/data/c clean
  rm -rf /run/data/c
  sleep "$SETTLE_S"
fi
rest_forever
