#!/usr/bin/env bash
# Finds some of the words that docs/style.md rules out, in our text files and in names. Prints file:line:text of each hit and
# ends with 1 if there is any. The account `nobody` is no hit: `nobody` in backquotes, nobody-here and NOBODY.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8                                   # without it grep takes text beyond ASCII for binary

words='(?i:whoever|everybody|somebody|someone|whom|anew|for[ _]ever|can[ _]not)'
words+='|(?i:(?:go|goes|going|went|gone)[ _]on|(?:stand|stands|stood|standing)[ _]still|(?:is|are|was|were|been)[ _]told)'
words+='|(?i:way[ _](?:up|down))'
words+='|(?i:canceled)'                                 # the API writes `cancelled`: one spelling; codespell checks the others
words+='|(?!NOBODY(?![A-Za-z]))(?<!`)(?i:nobody)(?!`|-here\b)'

# The license is the Apache Software Foundation's text.
others=(':!docs/style.md' ':!scripts/words.sh' ':!LICENSE')
listed=$(git -c core.quotePath=off ls-files --cached --others --exclude-standard -- . "${others[@]}")
files=()
while IFS= read -r file; do
  [ ! -f "$file" ] || files+=("$file")                  # it may be removed already, or be no file
done <<<"$listed"

status=0
grep -HnIP -- "(?<![A-Za-z])(?:$words)(?![A-Za-z])" "${files[@]}" || status=$?
[ "$status" != 1 ] || exit 0                            # grep found none; 2 is an error of grep itself
[ "$status" != 0 ] || echo "words.sh: docs/style.md rules these words out: rewrite the sentences above" >&2
exit 1
