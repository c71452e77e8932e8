#!/usr/bin/env bash
# Cross-compiles the native tests for aarch64 and runs them under user-mode emulation.
# Needs the Debian packages g++-aarch64-linux-gnu and qemu-user-static.
set -euo pipefail

for tool in aarch64-linux-gnu-g++ qemu-aarch64-static cmake; do
  if ! command -v "$tool" > /dev/null; then
    echo "$tool is missing: apt-get install g++-aarch64-linux-gnu qemu-user-static cmake" >&2
    exit 1
  fi
done
source_folder="$(cd "$(dirname "${BASH_SOURCE[0]}")/../native" && pwd)"
build_folder="${1:-"$source_folder/../build/aarch64"}"

cmake -S "$source_folder" -B "$build_folder" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64-static;-L;/usr/aarch64-linux-gnu" \
  -DEQUIBIT_PYTHON=OFF -DEQUIBIT_TESTS=ON
cmake --build "$build_folder" --parallel "${JOBS:-1}"
ctest --test-dir "$build_folder" --output-on-failure
