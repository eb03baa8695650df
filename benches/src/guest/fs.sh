# Files in the share and, for comparison, on the data disk of the same machine.
mount -t virtiofs share /run/share || say value error "no virtio-fs"
mount -t ext4 -o discard,noatime /dev/vda /run/data || say value error "no data disk"

wants() { case " $CASES " in *" $1 "*) ;; *) false ;; esac; }

# tree_cases FOLDER SUFFIX: typical work with a source tree.
tree_cases() {
  local tree=$1/tree suffix=$2
  mkdir -p "$tree"
  cat "$SOURCE" >/dev/null
  wants untar && stage "untar$suffix" tar -x -f "$SOURCE" -C "$tree"
  wants git_add && { git -C "$tree" init -q; stage "git_add$suffix" git -C "$tree" add -A; git -C "$tree" commit -q -m x; }
  wants git_status && { git -C "$tree" status >/dev/null; stage "git_status$suffix" git -C "$tree" status; }
  wants git_status_cold && { forget; stage "git_status_cold$suffix" git -C "$tree" status; }
  wants find && { forget; stage "find$suffix" find "$tree" -type f -newer /proc/1; }
  wants rm && stage "rm$suffix" rm -rf "$tree"
}

# file_cases FOLDER SUFFIX: one large file, without the guest's page cache, which measures the path to the server.
file_cases() {
  local suffix=$2 job="--filename=$1/fio.dat --size=${FILE_MIB}M --ioengine=psync --direct=1"
  wants fio || return 0
  warm_fio
  # Word splitting is wanted: these are options.
  fio_case "seq_write$suffix" $job --rw=write --bs=1M --end_fsync=1
  fio_case "seq_read$suffix" $job --rw=read --bs=1M
  fio_case "rand_write$suffix" $job --rw=randwrite --bs=4k --end_fsync=1
  fio_case "rand_read$suffix" $job --rw=randread --bs=4k
  rm -f "$1/fio.dat"
}

# build_cases FOLDER SUFFIX: packages of a web project, and a C program. Both are in the tools image.
build_cases() {
  local folder=$1 suffix=$2
  wants npm_ci && {
    mkdir -p "$folder/npm"
    cp /tmp/tools/opt/bench/npm/package*.json "$folder/npm/"
    cp -r /tmp/tools/opt/bench/npm/cache /tmp/tools/tmp/npm-cache
    stage "npm_ci$suffix" tool npm --prefix "$folder/npm" --cache /tmp/npm-cache --offline --no-audit --no-fund ci
    rm -rf "$folder/npm" /tmp/tools/tmp/npm-cache
  }
  wants c_build && {
    mkdir -p "$folder/c"
    tar -x -f /tmp/tools/opt/bench/c.tar -C "$folder/c" --strip-components=1
    stage "c_build$suffix" tool make -C "$folder/c" -j "$(nproc)" linux
    rm -rf "$folder/c"
  }
}

for kind in tree file build; do
  for target in $TARGETS; do
    suffix=; [ "$target" = share ] || suffix=_on_disk
    "${kind}_cases" "/run/$target" "$suffix"
  done
done
rest_forever
