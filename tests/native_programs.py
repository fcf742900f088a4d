"""C files as programs of this machine without any C library: by gcc or by the clang of the package ziglang, for 64 and 32 bits."""

from __future__ import annotations

import errno
import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from machines import emulated

START = """
#ifdef __x86_64__
.globl _start, memcpy, memset
_start: and $-16, %rsp
    call net_self_check
    mov %eax, %edi
    mov $60, %eax
    syscall
memcpy: mov %rdi, %rax
    mov %rdx, %rcx
    rep movsb
    ret
memset: mov %rdi, %r8
    mov %esi, %eax
    mov %rdx, %rcx
    rep stosb
    mov %r8, %rax
    ret
#else
.globl _start, memcpy, memset
_start: and $-16, %esp
    call net_self_check
    mov %eax, %ebx
    mov $1, %eax
    int $0x80
memcpy: push %edi
    push %esi
    mov 12(%esp), %edi
    mov 16(%esp), %esi
    mov 20(%esp), %ecx
    mov %edi, %eax
    rep movsb
    pop %esi
    pop %edi
    ret
memset: push %edi
    mov 8(%esp), %edi
    mov 12(%esp), %eax
    mov 16(%esp), %ecx
    rep stosb
    mov 8(%esp), %eax
    pop %edi
    ret
#endif
.section .note.GNU-stack, "", %progbits
"""  # its entry ends the process with the answer of the self-check
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
TRAPS = ["-fsanitize=undefined", "-fsanitize-trap=undefined"]  # undefined behavior ends the program; needs no library
CLANG = [sys.executable, "-m", "ziglang", "cc", *TRAPS, "-target"]
COMPILERS = {
    "clang": [*CLANG, "x86_64-freestanding"],
    "clang, 32 bits": [*CLANG, "x86-freestanding"],
    "gcc, 32 bits": ["gcc", "-m32", "-fno-stack-protector", "-fno-pie", "-no-pie", "-static"],
}


def program(name: str, source: Path, *flags: str) -> Path:
    """The program of a file that needs no library; its exit status is that of the self-check."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        pytest.skip(f"programs for Linux on x86-64, this is {sys.platform} on {platform.machine()}")
    if name.startswith("clang") and importlib.util.find_spec("ziglang") is None:
        pytest.skip("no clang: pip install bitwright[cross]")
    if name.startswith("gcc") and shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine")
    start, out = source.with_name("start.S"), source.with_name("program")
    start.write_text(START)
    language = ["-x", "c++"] if "-std=c++17" in flags else ["-x", "c"]
    bare = ["-ffreestanding", "-nostdlib", "-DNET_SELF_CHECK"]
    command = [*COMPILERS[name], *bare, *STRICT, *flags, *language, str(source), "-x", "assembler-with-cpp", str(start)]
    made = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr[:2000]
    return out


def ended(path: Path) -> int:
    """The exit status; by an emulator, or a skip, where the kernel runs no programs of 32 bits."""
    try:
        return subprocess.run([str(path)], capture_output=True, timeout=300).returncode
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        return emulated(("qemu-i386",), path).returncode
