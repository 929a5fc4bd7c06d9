#!/bin/bash
# All tests, in two halves side by side: most of what the guest's tests take is waiting for a guest.
#
#   scripts/test.sh        (`make test` runs it, after the set-up)
#
# The guest's are shown as they run; what the others said is shown when they have ended. Exit status 0: all passed.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest=.venv/bin/pytest
log=build/test-processes.log
guest=(tests/guest)

# So that it can be ended with all that it started, whoever started us.
set -m
"$pytest" tests --ignore=tests/guest </dev/null >"$log" 2>&1 &
others=$!
set +m
trap 'kill -TERM -- "-$others" 2>/dev/null' EXIT

echo "test: unit and integration tests and the faults run beside the guest's tests; meanwhile their output is in $log"
"$pytest" "${guest[@]}"
status=$?

wait "$others"
others_status=$?
trap - EXIT
echo
echo "test: and the others:"
cat "$log"
exit $((status || others_status))
