#!/bin/sh
# Build the kernels and the driver with AddressSanitizer and UndefinedBehaviorSanitizer, then run them.
#   tests/native/run_sanitized.sh [build folder] [rounds]      CXX picks the compiler (g++ or clang++)
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$(mktemp -d)}
rounds=${2:-300}
cmake -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBITWRIGHT_SANITIZE=address,undefined -DBITWRIGHT_DRIVER=ON
cmake --build "$build"
UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 "$build/bitwright_driver" "$rounds"
