# Sourced by the build scripts: where results are cached, and one way to build each of them once.
# A result is a folder named by the hash of its inputs, so that nothing unchanged is built twice and nothing is replaced
# under a machine that still uses it.

cache_root=${GARRET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/garret}

die() { echo "${0##*/}: $*" >&2; exit 1; }

# digest FILE...: a short hash of the files' contents and of standard input.
digest() { { cat "$@"; cat; } | sha256sum | cut -c1-16; }

# build_once KIND KEY FUNCTION: prints $cache_root/KIND/KEY, first letting FUNCTION fill it (its argument: the folder to fill).
build_once() {
  local kind=$1 key=$2 make=$3 dir=$cache_root/$1 out=$cache_root/$1/$2
  if [ ! -d "$out" ]; then
    mkdir -p "$dir"
    exec 9>"$dir/lock"; flock 9                       # two builds at once would fight for the same cores
    if [ ! -d "$out" ]; then
      build_work=$(mktemp -d "$dir/build.XXXXXX")
      trap 'rm -rf --one-file-system "$build_work"' EXIT
      echo "$kind: building (log: $dir/build.log)" >&2
      mkdir "$build_work/out"
      # Not `if ! ( … )`: bash would switch off errexit inside.
      set +e; (set -e; "$make" "$build_work/out" "$build_work") >"$dir/build.log" 2>&1; local status=$?; set -e
      [ "$status" = 0 ] || { tail -n 30 "$dir/build.log" >&2; die "building $kind failed; log: $dir/build.log"; }
      mv -T "$build_work/out" "$out"
      rm -rf --one-file-system "$build_work"
    fi
    flock -u 9
  fi
  echo "$out"
}

# as_root COMMAND…: through sudo where the caller is not root, with the same cache.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo env "PATH=$PATH" "GARRET_CACHE=$cache_root" "$@"; fi
}

# has_virtualization: whether guests can run natively. The processor decides: some hosts only imitate /dev/kvm.
has_virtualization() { grep -qwE 'svm|vmx' /proc/cpuinfo && [ -c /dev/kvm ]; }
