"""Runs Python with a sanitizer of g++ under what is compiled for it."""

from __future__ import annotations

import subprocess


def preloaded(sanitizer: str) -> dict[str, str]:
    """Returns the environment in which Python starts with a sanitizer: "asan" or "tsan".

    It looks for what throws when it starts, so that the C++ library must be there then.
    """
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in (f"lib{sanitizer}.so", "libstdc++.so")
    ]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python does not free all it has
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 report_signal_unsafe=0 exitcode=66",
    }
