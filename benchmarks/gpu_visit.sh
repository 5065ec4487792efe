#!/usr/bin/env bash
# Times all cells on one GPU within nine minutes, the most important first.
#
#   OUT=DIR benchmarks/gpu_visit.sh [--rehearse]
#
# $OUT holds one file, visit.tar.gz: a folder of records, of what each cell wrote to standard error, and of failed.txt
# and left_out.txt. It is made anew after each cell, so that a visit that is killed keeps what it had.
# Installs nothing: $PYTHON (python3) has JAX for CUDA and PyTorch, and what else they need lies on $PYTHONPATH.
# $MINUTES (9) ends the visit; a cell has its own limit and a failed one stops nothing. --rehearse runs every command
# with tiny shapes on the CPU, and is tested, so that no visit ends at a misspelt word.
set -u
python=${PYTHON:-python3} out=$(realpath -m "${OUT:?the folder of the archive}")
work=$(mktemp -d) || exit
trap 'rm -rf "$work"' EXIT
records=$work/visit
cd "$(dirname "$0")/.."
export JAX_TRACEBACK_FILTERING=off # so that the last line of an error says what it is
end=$((SECONDS + ${MINUTES:-9} * 60))
small=(--pair resnet20-wrn16_1 --batch 128)
wide=(--pair wrn40_2-wrn16_1 --batch 256)
deep=(--pair resnet34-resnet18 --batch 256)
large=(--recipe imagenet --pair resnet50_imagenet-resnet18_imagenet --batch 100)
tiny=() rehearsal=no
if [ "${1:-}" = --rehearse ]; then
  rehearsal=yes end=$((SECONDS + 86400))
  export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES='' TORCH_COMPILE_DISABLE=1
  small=(--pair wrn10_1-wrn10_1) wide=(--pair wrn10_1-wrn10_1) deep=(--pair wrn10_1-wrn10_1)
  large=(--recipe imagenet --pair wrn10_1-wrn10_1 --set teacher.image_size=32)
  tiny=(--seconds 0.01 --warm-ups 1 --kd-steps 2 --k 2 --batch 4 --set generator.width=2 generator.latent_dim=8)
fi
mkdir -p "$out" "$records" || exit
declare -A rehearsed

# The new archive takes the place of the old one when it is whole.
keep() {
  tar -C "$work" -czf "$out/.visit.tar.gz" visit && mv "$out/.visit.tar.gz" "$out/visit.tar.gz"
}

cell() {
  timed "$@"
  keep
}

# timed NAME SECONDS ARGUMENT...: XLA's flags come from $flags
timed() {
  local name=$1 most=$2 left=$((end - SECONDS))
  shift 2
  if [ $rehearsal = yes ]; then # once of each kind
    local kind="${flags:-} ${JAX_DEFAULT_MATMUL_PRECISION:-} $*"
    [ -n "${rehearsed[$kind]:-}" ] && return
    rehearsed[$kind]=$name most=600
  fi
  if [ "$left" -lt 5 ]; then
    echo "$name: no time left" | tee -a "$records/left_out.txt"
    return
  fi
  [ "$most" -gt "$left" ] && most=$left
  XLA_FLAGS="${XLA_FLAGS:-} ${flags:-}" timeout --kill-after=5 "$most" \
    "$python" -m benchmarks.gpu_cell "$name" --out "$records" "$@" ${tiny[@]+"${tiny[@]}"} 2>"$records/$name.err" && return
  local status=$? why
  why=$(tail -n 1 "$records/$name.err")
  [ $status = 124 ] && why="it ran past $most seconds"
  echo "$name: ended with status $status: $why" | tee -a "$records/failed.txt"
}

command_buffers="--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,WHILE,CONDITIONAL"
command_buffers+=" --xla_gpu_graph_min_graph_size=1"
unrolled=(--set fastdfkd.unroll=true kd.unroll=true)

# 1: is a small program bound by launches, and what helps?
cell 1-ours 45 "${small[@]}"
cell 1-graphed 45 "${small[@]}" --side graphed
flags=$command_buffers cell 1-ours-command-buffers 45 "${small[@]}"
cell 1-ours-unrolled 60 "${small[@]}" "${unrolled[@]}"
flags=$command_buffers cell 1-ours-unrolled-command-buffers 60 "${small[@]}" "${unrolled[@]}"
cell 1-tuned 40 "${small[@]}" --side tuned
cell 1-ours-bf16 45 "${small[@]}" --precision bfloat16

# 2: the paper's pair, against PyTorch
cell 2-ours 60 "${wide[@]}"
cell 2-tuned 45 "${wide[@]}" --side tuned
cell 2-graphed 45 "${wide[@]}" --side graphed
cell 2-ours-bf16 60 "${wide[@]}" --precision bfloat16
cell 2-graphed-bf16 45 "${wide[@]}" --side graphed --precision bfloat16
flags=$command_buffers cell 2-ours-bf16-command-buffers 60 "${wide[@]}" --precision bfloat16
cell 2-tuned-bf16 45 "${wide[@]}" --side tuned --precision bfloat16

# 3 to 6: a wide pair, 224 pixels with and without rematerialisation, KD there, lanes
cell 3-ours-bf16 60 "${deep[@]}" --precision bfloat16
cell 4-ours 90 "${large[@]}" --precision bfloat16 --parts call
cell 4-ours-remat 90 "${large[@]}" --precision bfloat16 --parts call --set 'remat="blocks"'
cell 5-ours 60 "${large[@]}" --precision bfloat16 --parts kd --kd-steps 5
for lanes in 4 16; do
  cell "6-ours-$lanes-lanes" 60 "${small[@]}" --parts call --set "fastdfkd.num_tasks=$lanes"
done

# What else can be told, if time is left
flags=--xla_gpu_enable_command_buffer= cell 1-ours-no-command-buffers 45 "${small[@]}"
cell 1-compiled 200 "${small[@]}" --side compiled
cell 1-plain 40 "${small[@]}" --side plain
cell 2-ours-k10 60 "${wide[@]}" --k 10
cell 2-compiled 200 "${wide[@]}" --side compiled
cell 2-plain 45 "${wide[@]}" --side plain
flags=--xla_gpu_enable_latency_hiding_scheduler=true cell 1-ours-latency-hiding 45 "${small[@]}"
JAX_DEFAULT_MATMUL_PRECISION=highest cell 1-ours-float32 45 "${small[@]}"
cell 3-graphed-bf16 60 "${deep[@]}" --precision bfloat16 --side graphed
[ ! -s "$records/failed.txt" ]
