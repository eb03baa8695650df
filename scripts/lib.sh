# Sourced by the build scripts: the cache of results, and a function that builds each result once.
# A result is a folder named by the hash of its inputs. So nothing unchanged is built twice, and no file that a machine
# still uses is replaced.

cache_root=${GARRET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/garret}

die() { echo "${0##*/}: $*" >&2; exit 1; }

# digest FILE...: a short hash of the files' contents and of standard input.
digest() { { cat "$@"; cat; } | sha256sum | cut -c1-16; }

# build_once KIND KEY FUNCTION: prints $cache_root/KIND/KEY. If it does not exist, calls FUNCTION with the folder to
# fill first.
build_once() {
  local kind=$1 key=$2 make=$3 dir=$cache_root/$1 out=$cache_root/$1/$2
  if [ ! -d "$out" ]; then
    mkdir -p "$dir"
    exec 9>"$dir/lock"; flock 9                       # two builds at once would compete for the same cores
    if [ ! -d "$out" ]; then
      build_work=$(mktemp -d "$dir/build.XXXXXX")
      trap 'rm -rf --one-file-system "$build_work"' EXIT
      echo "$kind: building (log: $dir/build.log)" >&2
      mkdir "$build_work/out"
      # Not `if ! ( … )`: bash would disable errexit inside.
      set +e; (set -e; "$make" "$build_work/out" "$build_work") >"$dir/build.log" 2>&1; local status=$?; set -e
      [ "$status" = 0 ] || { tail -n 30 "$dir/build.log" >&2; die "building $kind failed; log: $dir/build.log"; }
      mv -T "$build_work/out" "$out"
      rm -rf --one-file-system "$build_work"
    fi
    flock -u 9
  fi
  echo "$out"
}

# as_root COMMAND…: runs it, through sudo if the caller is not root, with the same cache.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo env "PATH=$PATH" "GARRET_CACHE=$cache_root" "$@"; fi
}

# has_virtualization: whether guests can run natively. The processor's flags decide: some hosts only imitate /dev/kvm.
has_virtualization() { grep -qwE 'svm|vmx' /proc/cpuinfo && [ -c /dev/kvm ]; }
