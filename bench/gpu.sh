#!/usr/bin/env bash
# Everything that needs a GPU, in two calls of less than ten minutes each:
#
#   bash bench/gpu.sh OUT check      builds from source; status; pytest -m cuda; compute-sanitizer
#   bash bench/gpu.sh OUT measure    builds if need be; convolutions; training steps and their memory
#   bash bench/gpu.sh OUT all        check, then measure
#
# Needs torch (CUDA), nvcc of its CUDA major, setuptools >= 77, ninja, rich, torchvision, pytest, pytest-xdist; no
# network, nothing is installed. Every part has a time limit, and one that fails leaves the others alone. OUT then holds
# <call>.log, parts.tsv, conv.json and training.json as far as they came, cuda_<card>[_<call>].json with how
# each part ended and the measurements, and table.md: at most 8 files. Exit code 1 if a part failed, 2 without a GPU.
# The card's settings are not touched.
#
# On a machine without a network a Python package that is missing travels as a wheel in the folder .whl of the
# repository's root, and is unpacked into a temporary folder below. On a machine with a network, once:
#   mkdir -p .whl; echo /.whl/ >>"$(git rev-parse --git-path info/exclude)"
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 \
#     -d .whl NAME==VERSION
# Nothing here needs segmentation-models-pytorch, mlxtend or torch-pruning; tests that do skip without them.
set -uo pipefail

usage() { echo "usage: bash bench/gpu.sh OUT [check|measure|all]" >&2; exit 2; }
[ $# -ge 1 ] && [ $# -le 2 ] || usage
CALL=${2:-all}
case $CALL in check | measure | all) ;; *) usage ;; esac
mkdir -p "$1" && OUT=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
LOG=$OUT/$CALL.log
FAILED=0
: >"$LOG"

if compgen -G ".whl/*.whl" >/dev/null; then
  SITE=$(mktemp -d)
  unpack=(install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE")
  "$PYTHON" -m pip "${unpack[@]}" .whl/*.whl && export PYTHONPATH=$SITE
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  { echo "no GPU here: torch.cuda.is_available() is False" >&2; exit 2; }

# part NAME SECONDS COMMAND...: runs it, at most so long and not past the call's end; the last lines are shown, all of
# it is in the log, and how it ended in parts.tsv.
part() {
  local name=$1 limit=$2 left=$((END - SECONDS)) begin=$SECONDS code last
  shift 2
  [ "$left" -lt "$limit" ] && limit=$left
  printf '\n=== %s (at %s s, limit %s s): %s\n' "$name" "$SECONDS" "$limit" "$*" | tee -a "$LOG"
  if [ "$limit" -lt 5 ]; then
    code=124 last="no time was left"
    echo "$last" | tee -a "$LOG"
  else
    timeout --kill-after=10 "$limit" "$@" >"$OUT/part.log" 2>&1
    code=$?
    last=$(grep -v '^[[:space:]]*$' "$OUT/part.log" | tail -n 1 | tr '\t' ' ')
    cat "$OUT/part.log" >>"$LOG"
    tail -n "${SHOWN:-12}" "$OUT/part.log"
    rm -f "$OUT/part.log"
  fi
  printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - begin))" "$last" >>"$OUT/parts.tsv"
  [ "$code" = 0 ] || { FAILED=1; echo "--- $name ended with exit code $code"; }
  return "$code"
}

# --force: setuptools knows nothing of the headers; ninja does, and compiles only what is older than they are. The
# card's architecture unless TORCH_CUDA_ARCH_LIST names others. egg_info: the version, without an install.
build() {
  local arch
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
  part build 280 env EXPLAINFIX_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-${arch:-9.0}}" \
    "$PYTHON" setup.py -q egg_info build_ext --inplace --force &&
    part status 60 "$PYTHON" -c 'import explainfix_ext as e; s = e.status(); print(s)
assert s.cuda_kernels.startswith("_C_cu"), "the CUDA kernels did not load"'
}

# A test takes 20 s so. Only our kernels are watched: checking cuDNN's takes minutes. Without torch's cache of memory every tensor is an
# allocation of its own, so that reading past one is seen; CUDA graphs cannot be captured then.
SANITIZED="(hadamard or depthwise) and (3-1-bfloat16 or 3-2-bfloat16)"
sanitize() {
  local tool=$1 sanitizer only=()
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  if [ -z "$sanitizer" ]; then
    part "$tool" 5 bash -c 'echo "not run: there is no compute-sanitizer on this machine"; exit 3'
    return
  fi
  [[ $("$sanitizer" --help 2>&1) == *--kernel-name* ]] && only=(--kernel-name kns=explainfix)
  part "$tool" 170 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" "${only[@]}" --error-exitcode 9 \
    "$PYTHON" -m pytest -q -p no:cacheprovider tests/project/test_bench_cuda.py -m cuda -k "$SANITIZED"
}

check() {
  END=$((SECONDS + 570))
  part card 20 nvidia-smi
  build || return
  part tests 240 "$PYTHON" -m pytest -q -n 4 -p no:cacheprovider -m cuda --continue-on-collection-errors
  sanitize memcheck
  sanitize racecheck
}

measure() {
  END=$((SECONDS + 570))
  build || return
  part conv 330 "$PYTHON" bench/bench_cuda_conv.py --out "$OUT/conv.json"
  SHOWN=30 part training 240 "$PYTHON" bench/bench_cuda_training.py --out "$OUT/training.json"
}

if [ "$CALL" = all ]; then
  check
  measure
else
  "$CALL"
fi
name=()
[ "$CALL" = check ] && name=(--name check)
"$PYTHON" bench/gpu_report.py "$OUT" "${name[@]}" | tee "$OUT/table.md"
exit "$FAILED"
