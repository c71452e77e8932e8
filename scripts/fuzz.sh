#!/usr/bin/env bash
# Fuzzes the model loader and structure input with libFuzzer, AddressSanitizer and UBSan. Needs Clang
# with its sanitizer runtimes (Debian: clang and libclang-rt-dev).
#
#     scripts/fuzz.sh [CASES_EACH] [model | structure]
#
# A case that fails is left as crash-*; add it to native/fuzz/corpus once the fault is mended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cases=${1:-1000000}
targets=${2:-model structure}
folder=build/fuzz

# What is read is fuzzed, not arithmetic, so the portable kernels will do: a processor without a name.
cmake -S native -B "$folder" -DCMAKE_CXX_COMPILER="${CXX:-clang++}" -DEQUIBIT_PYTHON=OFF \
  -DCMAKE_SYSTEM_NAME="$(uname -s)" -DCMAKE_SYSTEM_PROCESSOR=generic \
  -DEQUIBIT_FUZZ=ON -DEQUIBIT_SANITIZE=ON
cmake --build "$folder" --parallel "${JOBS:-2}" --target fuzz_model fuzz_structure
for target in $targets; do
  mkdir -p "$folder/found/$target"
  (cd "$folder" && "./fuzz_$target" -runs="$cases" -max_len=16384 -timeout=20 \
    -rss_limit_mb=4000 -print_final_stats=1 "found/$target" \
    "$OLDPWD/native/fuzz/corpus/$target")
done
