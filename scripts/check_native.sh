#!/usr/bin/env bash
# Builds and runs the native tests: kernels, neighbours, the C face and its example, and the corpus of
# the fuzz targets. Everything is built with AddressSanitizer and UndefinedBehaviorSanitizer, unless
# --plain is given.
#
#     scripts/check_native.sh [--plain] [BUILD_FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sanitize=ON
if [ "${1:-}" = "--plain" ]; then
  sanitize=OFF
  shift
fi
folder=${1:-build/native-tests-$sanitize}

cmake -S native -B "$folder" -DEQUIBIT_TESTS=ON -DEQUIBIT_PYTHON=OFF -DEQUIBIT_SANITIZE="$sanitize"
cmake --build "$folder" --parallel "${JOBS:-2}"
# Memory that cannot be had is an error to report, not one to stop at.
export ASAN_OPTIONS=allocator_may_return_null=0:detect_leaks=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
ctest --test-dir "$folder" --output-on-failure
