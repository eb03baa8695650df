#!/usr/bin/env bash
# Builds `tools.erofs` and prints its folder. It is a Debian trixie with the programs that the benches run inside guests: fio,
# iperf3, a compiler and npm. It also contains a C program's source and a web project's packages. Every machine gets it as a
# read-only disk.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../scripts/lib.sh"
. "$here/../../scripts/debian.sh"
npm_version=10.9.4
program=lua5.4                                            # small, plain C, and built by `make linux` without other packages
export SOURCE_DATE_EPOCH=1767225600

# source_of PACKAGE FILE WORK: writes the program's original source from Debian's mirror to FILE.
source_of() {
  local package=$1 file=$2 apt=$3/apt
  mkdir -m 777 -p "$apt"/{lists/partial,cache/archives/partial,out}
  debian_sources trixie | sed 's/^deb /deb-src /' >"$apt/sources.list"
  local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists"
    -o "Dir::Cache=$apt/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  (cd "$apt/out" && apt-get "${options[@]}" source --download-only "$package")
  cat "$apt"/out/*.orig.tar.* | gzip -dc >"$file"
}

# build_tools OUT WORK
build_tools() {
  local out=$1 work=$2 tree=$2/tree bench=$2/tree/opt/bench
  debian_tree trixie "$(packages "$here/packages")" "$tree"
  rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/var/log/* "$tree"/boot/* "$tree"/tmp/*
  mkdir -p "$bench"
  source_of "$program" "$bench/c.tar" "$work"
  cp -r "$here/npm" "$bench/npm"
  (cd "$work" && npm pack --silent "npm@$npm_version" && tar -xzf "npm-$npm_version.tgz" -C "$tree/opt" \
    && mv "$tree/opt/package" "$tree/opt/npm")
  ln -s ../../../opt/npm/bin/npm-cli.js "$tree/usr/local/bin/npm"
  # This fills the cache. The installed files are not kept.
  cp -r "$here/npm" "$work/npm"
  (cd "$work/npm" && npm ci --silent --ignore-scripts --no-audit --no-fund --cache "$bench/npm/cache")
  rm -rf "$bench"/npm/cache/_logs
  mkfs.erofs -T "$SOURCE_DATE_EPOCH" -U 6b7b1e0e-2f5e-4c52-9d34-0e1e3f0a7c12 "$out/tools.erofs" "$tree" >/dev/null
  truncate -s %4096 "$out/tools.erofs"
  chmod 444 "$out/tools.erofs"
}

build_once bench-tools "$(digest "$here/build.sh" "$here/packages" "$here"/npm/*.json "$here/../../scripts/debian.sh" <<<'')" build_tools
