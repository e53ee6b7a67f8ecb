#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Fuzzes every target of the module, one after the other, and stops at the
# first that fails. The input that failed is then in testdata/fuzz of the
# target's package: commit it with the fix, and every test run tries it again.
#
#	tests/fuzz.sh [TIME] [PATTERN]
#
# TIME is how long each target runs, as go test -fuzztime takes it (20s, 5m,
# 10000x). PATTERN, an extended regular expression, chooses targets by
# "package FuzzName".
set -euo pipefail
cd "$(dirname "$0")/.."

go=${GO:-go}
time=${1:-20s}
pattern=${2:-.}

# From lines of package, folder and test files: "package FuzzName" of each target.
targets() {
	local package folder files file name
	while IFS=$'\t' read -r package folder files; do
		for file in $files; do
			while read -r name; do
				echo "$package $name"
			done < <(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$folder/$file")
		done
	done
}

# Not a process substitution: what go list complains about must end this.
packages=$("$go" list -f '{{.ImportPath}}{{"\t"}}{{.Dir}}{{"\t"}}{{join .TestGoFiles " "}} {{join .XTestGoFiles " "}}' ./...)
found=$(targets <<<"$packages" | sort -u | grep -E -- "$pattern") || {
	echo "fuzz: no target matches $pattern" >&2
	exit 1
}
mapfile -t all <<<"$found"

echo "== fuzz ${#all[@]} targets, $time each"
n=0
for target in "${all[@]}"; do
	n=$((n + 1))
	echo "-- $n/${#all[@]} $target"
	"$go" test -run '^$' -fuzz "^${target#* }\$" -fuzztime "$time" "${target% *}" </dev/null
done
echo "== fuzz: all ${#all[@]} passed"
