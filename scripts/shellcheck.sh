#!/usr/bin/env bash
# Runs shellcheck over every shell script, whatever its name. `.shellcheckrc` has what is allowed.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts=()
while IFS= read -r file; do
  read -r first <"$file" || continue                      # an empty file, or one without a line end
  case $first in '#!'*sh | '#!'*sh\ *) scripts+=("$file") ;; esac
done < <(git -c core.quotePath=off ls-files -- ':!*.rs' ':!*.md' ':!*.json' ':!*.svg' ':!*.patch')
shellcheck --external-sources --severity=warning "${scripts[@]}"
