#!/bin/bash
# All tests, in two halves side by side: most of what a guest's tests take is waiting for the guest.
#
#   scripts/test.sh        (`make test` runs it, after the set-up)
#
# The guest's are shown as they run; what the others said is shown when they have ended. Exit status 0: all passed.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest=(.venv/bin/pytest --durations=10)
log=build/test-others.log
# Of the guest's tests, so many that both halves take as long: some of those with a guest of their own.
moved=(tests/guest/test_{freeze,launch,libvirt,qga_compare,restore,shutdown_graded}.py)

# A process group of its own, so that it can be ended with all that it started.
set -m
"${pytest[@]}" tests/unit tests/integration tests/fuzz tests/faults "${moved[@]}" </dev/null >"$log" 2>&1 &
others=$!
set +m
trap 'kill -TERM -- "-$others" 2>/dev/null' EXIT

echo "test: unit and integration tests, the faults and some of the guest's run beside these; meanwhile they write to $log"
"${pytest[@]}" tests/guest "${moved[@]/#/--ignore=}"
status=$?

wait "$others"
others_status=$?
trap - EXIT
echo
echo "test: and the others:"
cat "$log"
exit $((status || others_status))
