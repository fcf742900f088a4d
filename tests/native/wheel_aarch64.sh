#!/bin/sh
# A wheel for Linux on 64-bit ARM with glibc 2.28 or newer, built on any machine with zig as the compiler.
#   pip install ziglang
#   tests/native/wheel_aarch64.sh [folder for the wheel] [build folder]      PYTHON picks the interpreter
set -eu
source=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-.}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
zig=$("$python" -c 'import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), "zig"))') # pip hides the package
printf '#!/bin/sh\nexec "%s" c++ -target aarch64-linux-gnu.2.28 -fPIC "$@"\n' "$zig" >"$work/c++"
chmod +x "$work/c++"
# the host's strip does not know the format: the linker strips
CMAKE_ARGS="-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$work/c++ -DCMAKE_SHARED_LINKER_FLAGS=-s"
export CMAKE_ARGS _PYTHON_HOST_PLATFORM=manylinux_2_28-aarch64 # what the wheel's name says
"$python" -m pip wheel "$source" --no-deps --wheel-dir "$out" \
    --config-settings=install.strip=false --config-settings=build-dir="${2:-$work/build}"
