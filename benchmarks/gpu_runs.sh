#!/usr/bin/env bash
# Runs the published CIFAR-10 protocol on a GPU that is lent for minutes at a time: each visit continues the one before.
#
#   OUT=DIR DATA=DIR [KEPT=DIR] [MINUTES=8] [MORE=0] [NEEDS=7] [WORK=DIR] [PYTHON=python3] \
#       benchmarks/gpu_runs.sh [--rehearse]
#
#   OUT      what comes back: log.txt and two archives in parts, at most 8 files and 60 MiB
#   DATA     TFDS's folder, which holds cifar10; without the training split only runs on synthesised images are begun
#   KEPT     the files that came back last; they hold what all visits before have made
#   MINUTES  after which all is packed and the visit has ended
#   MORE     minutes that another call will have on the same machine, while WORK is still there
#   NEEDS    minutes that a run on synthesised images takes, until one was measured
#   WORK     where the runs lie; a second call on the same machine finds them there, and prefers them to KEPT
#
# The runs stand below in the order of their importance. A finished one is skipped, a begun one continues, and one whose
# teacher is missing waits. A run is sent SIGTERM $RESERVE (45) seconds before the end: it ends what it does, a compilation
# for instance, saves a checkpoint and exits with status 0. After two thirds of these seconds it is killed.
#
# What comes back:
# - finished.tar.gz.NN: of every finished run its config, metrics, summary, weights and last picture, and all logs. Its
#   pool of images does not come back.
# - state.tar.gz.NN: of every unfinished run its newest checkpoint, and what the checkpoint needs.
#
# What that means for each kind of run:
# - The teacher (a checkpoint of 18 MB), KD and training from scratch (1.4 to 5.5 MB) may stop anywhere. They fill
#   whatever time is left.
# - A run on synthesised images has a checkpoint of 30 MB and a pool that grows by 0.8 MB a call, to 173 MB. After some
#   40 of its 220 calls it can no longer come back. So it is begun only where it is expected to end: in the minutes that
#   are left, or in those and MORE. What is expected is what such a run has taken before, or else NEEDS.
# What cannot come back is said in one line.
#
# Installs nothing. --rehearse makes a teacher and a student of digits on the CPU in this way; tests run it.
set -u
die() {
  echo "error: $*" >&2
  exit 2
}
[ $# = 0 ] || [ "$*" = --rehearse ] || die "expected nothing or --rehearse, found $*"
rehearsal=${1:-}
out=$(realpath -m "${OUT:?the folder of what comes back}")
data=$(realpath -m "${DATA:-nowhere}")
kept=${KEPT:+$(realpath -m "$KEPT")}
work=$(realpath -m "${WORK:-${TMPDIR:-/tmp}/fastdfkd_runs}")
python=${PYTHON:-python3} reserve=${RESERVE:-45} least=${LEAST:-60}
names=() failed=no child='' stopped='' train=yes
part_bytes=${PART_BYTES:-15728640} most_bytes=${MOST_BYTES:-62914560}
cd "$(dirname "$0")/.." || exit 2
seconds_of() { # MINUTES, which may have a fraction
  awk -v minutes="$1" 'BEGIN { if (minutes !~ /^[0-9]+(\.[0-9]+)?$/) exit 1; print int(60 * minutes) }' ||
    die "expected a number of minutes, found '$1'"
}
minutes=$(seconds_of "${MINUTES:-8}") && more=$(seconds_of "${MORE:-0}") && needs=$(seconds_of "${NEEDS:-7}") || exit 2
end=$((SECONDS + minutes))
if [ -n "$rehearsal" ]; then
  export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=''
  end=$((SECONDS + 86400)) reserve=0 least=0
else
  [ -d "$data/cifar10" ] || die "no cifar10 in DATA=$data"
  files=("$data"/cifar10/*/cifar10-train.*-of-*) # each name ends with how many there are
  [ ${#files[@]} = "$(sed 's/.*-of-0*//' <<<"${files[0]}")" ] || train=no
fi
[ "$least" -gt 0 ] || least=1 # with 0 seconds, timeout(1) sets no limit at all
[ -z "$kept" ] || [ -d "$kept" ] || die "KEPT=$kept is no folder"
runs=$work/runs
mkdir -p "$out" "$runs" "$work/expected" || exit 2
# A second seed finds what the first has compiled; never taken to another machine.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/compiled}
export JAX_TRACEBACK_FILTERING=off # so that the last line of an error says what it is
say() { echo "$*" | tee -a "$out/log.txt"; }

# A visit that is asked to end asks its run, packs, and ends.
stop() {
  stopped=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT HUP

# Folders that WORK has are newer than those that were kept.
unpack() {
  local archive parts folder fresh=$work/kept
  rm -rf "$fresh" && mkdir "$fresh" || exit 2
  for archive in finished state; do
    parts=("$kept/$archive".tar.gz.*)
    [ -e "${parts[0]}" ] || continue
    (set -o pipefail && cat "${parts[@]}" | tar -xz --no-same-owner -C "$fresh" 2>/dev/null) ||
      die "the $archive archive in KEPT=$kept is damaged or lacks a part: give all its parts"
  done
  while IFS= read -r folder; do
    [ -e "$work/$folder" ] || { mkdir -p "$(dirname "$work/$folder")" && mv "$fresh/$folder" "$work/$folder"; }
  done < <(cd "$fresh" && find . -name run.log -printf '%h\n')
  [ ! -d "$fresh/expected" ] || cp -n "$fresh/expected"/* "$work/expected/" 2>/dev/null
  rm -rf "$fresh"
}

checkpoint_of() { # FOLDER: the number of its newest checkpoint
  find "$1/checkpoints" -mindepth 1 -maxdepth 1 -regex '.*/[0-9]+' -printf '%f\n' 2>/dev/null | sort -n | tail -n 1
}

# pack ARCHIVE LIST: puts the listed files of WORK into OUT. Each part is whole when it takes the place of the old one.
pack() {
  local archive=$1 list=$2 new=$work/new part
  rm -rf "$new" && mkdir "$new"
  if [ -s "$list" ]; then
    (
      set -o pipefail
      tar -C "$work" --no-recursion -T "$list" -cz | split -b "$part_bytes" -d -a 2 - "$new/$archive.tar.gz." || exit
      for part in "$new"/*; do
        cp "$part" "$out/.${part##*/}" || exit
      done
    ) || { failed=yes && say "the $archive archive cannot be written to $out: what was there before stays" && return; }
  fi
  for part in "$new"/*; do
    [ ! -e "$part" ] || mv "$out/.${part##*/}" "$out/${part##*/}"
  done
  for part in "$out/$archive".tar.gz.*; do
    [ -e "$new/${part##*/}" ] || rm -f "$part"
  done
}

bytes_of() { # LIST: how much its files hold
  (cd "$work" && xargs -r -d '\n' stat -c '%s %F' <"$1") | awk '/regular/ { sum += $1 } END { print sum + 0 }'
}

pack_finished() {
  local name list=$work/finished.list
  (
    cd "$work" || exit
    find expected -type f
    find runs -name run.log
    find runs -name summary.json -printf '%h\n' | sort | while IFS= read -r name; do
      find "$name" -maxdepth 1 \( -name '*.json*' -o -name '*.safetensors' -o -name '*.pth' \)
      find "$name/images" -name '*.png' 2>/dev/null | sort | tail -n 1
    done
  ) >"$list"
  if [ "$(bytes_of "$list")" -gt "$most_bytes" ]; then
    say "the weights of finished students are too large to come back: they stay in $work"
    sed -i '/\/student\.[a-z]*$/d' "$list"
  fi
  pack finished "$list"
}

pack_state() {
  local name folder number bytes list=$work/state.list left=$((most_bytes - $(bytes_of "$work/finished.list")))
  : >"$list"
  for name in "${names[@]}"; do
    folder=$runs/$name
    number=$(checkpoint_of "$folder")
    [ -n "$number" ] && [ ! -e "$folder/summary.json" ] || continue
    (cd "$work" && find "runs/$name" \
      \( -path "runs/$name/images" -o -path "runs/$name/events" -o -path "runs/$name/.lock" \) -prune -o \
      -path "runs/$name/checkpoints/*" -not -path "runs/$name/checkpoints/$number" -prune -o \
      -print && find "runs/$name/checkpoints/$number" -mindepth 1) >"$list.one"
    bytes=$(bytes_of "$list.one")
    if [ "$bytes" -gt "$left" ]; then
      say "$name: its state of $((bytes / 1000000)) MB cannot come back; only this machine has it, in $folder"
      continue
    fi
    left=$((left - bytes))
    cat "$list.one" >>"$list"
  done
  pack state "$list"
}

number_in() { # FILE KEY: the first whole number of that key
  sed -n "s/^.*\"$2\": \([0-9][0-9]*\).*/\1/p" "$1" 2>/dev/null | head -n 1
}

# expect KIND FOLDER SPENT: notes the seconds of a whole run of this kind, from one that ended or from its part
expect() {
  local kind=$1 folder=$2 spent=$3 calls warmup call
  if [ -e "$folder/summary.json" ]; then
    echo $((spent * 11 / 10)) >"$work/expected/$kind"
    return
  fi
  calls=$(number_in "$folder/config.json" calls) warmup=$(number_in "$folder/config.json" warmup_calls)
  call=$(tail -n 1 "$folder/metrics.jsonl" 2>/dev/null | sed -n 's/^{"call": \([0-9]*\),.*/\1/p')
  [ -n "$calls" ] && [ -n "$warmup" ] && [ "${call:-0}" -gt "$warmup" ] || return
  echo $((spent * 11 / 10 * (calls - warmup) / (call - warmup))) >"$work/expected/$kind"
}

# run NAME STAYS TEACHER ARGUMENT...: STAYS is 'whole' where a part of the run cannot come back; TEACHER may be ''.
run() {
  local name=$1 stays=$2 teacher=$3 folder=$runs/$1 kind=${1%%/*} spent=0 left wanted begin status
  shift 3
  names+=("$name")
  if [ -e "$folder/summary.json" ]; then
    say "$name: finished before"
    return
  fi
  [ -z "$stopped" ] || return
  if [ "$stays" = part ] && [ $train = no ]; then
    say "$name: left out, as DATA lacks files of the training split"
    return
  fi
  if [ -n "$teacher" ]; then
    if [ ! -e "$runs/$teacher/summary.json" ]; then
      say "$name: waits for its teacher"
      return
    fi
    set -- "$@" --config.teacher.checkpoint="$runs/$teacher/teacher.safetensors"
  fi
  [ -z "$(checkpoint_of "$folder")" ] || spent=$(cat "$folder/seconds" 2>/dev/null || echo 0)
  left=$((end - reserve - SECONDS)) wanted=0
  if [ "$stays" = whole ]; then
    wanted=$(cat "$work/expected/$kind" 2>/dev/null || echo "$needs")
    wanted=$((wanted - spent - more))
  fi
  [ "$wanted" -gt "$least" ] || wanted=$least
  if [ "$left" -lt "$wanted" ]; then
    say "$name: not begun, as it needs some $wanted seconds and $((left > 0 ? left : 0)) are left"
    return
  fi
  mkdir -p "$folder"
  begin=$SECONDS
  timeout --kill-after=$((reserve * 2 / 3)) "$left" "$python" -m "$@" --workdir "$folder" >"$work/printed" 2>>"$folder/run.log" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal has ended the wait, not the run
    wait "$child"
    status=$?
  done
  child='' spent=$((spent + SECONDS - begin))
  echo "$spent" >"$folder/seconds"
  # Only a run that has ended prints its summary. Training a teacher writes it nowhere else.
  if [ "$status" = 0 ] && [ -s "$work/printed" ]; then
    [ -e "$folder/summary.json" ] || tail -n 1 "$work/printed" >"$folder/summary.json"
    say "$name: finished after $spent seconds: $(tail -n 1 "$work/printed")"
  elif [ "$status" = 0 ] || [ "$status" = 124 ] || [ -n "$stopped" ]; then
    say "$name: stopped after $spent seconds: $(tail -n 1 "$folder/run.log")"
  else
    failed=yes
    [ "$status" != 137 ] || echo "killed, as it had not ended when its time was over" >>"$folder/run.log"
    say "$name: ended with status $status: $(tail -n 1 "$folder/run.log")"
  fi
  [ "$stays" != whole ] || expect "$kind" "$folder" "$spent"
  pack_finished
}

[ -z "$kept" ] || unpack

if [ -n "$rehearsal" ]; then
  run digits-teacher part '' fastdfkd_jax.pretrain --config configs/pretrain_digits.py --config.arch=wrn10_1 \
    --config.recipe.epochs=1 --config.recipe.eval_every=1 --config.recipe.lr_milestones='()'
  run digits-fast2/seed0 part digits-teacher fastdfkd_jax.main --config configs/quickstart.py \
    --config.noise_control=false --config.calls=12 --config.warmup_calls=1 --config.checkpoint_every=2 \
    --config.synthesis_batch=8 --config.fastdfkd.num_steps=2 --config.generator.width=8 --config.kd.batch=8 \
    --config.kd.steps_per_call=4 --config.kd.steps_per_dispatch=4 --config.eval_every=4
else
  teacher=cifar10-wrn40_2-teacher
  run $teacher part '' fastdfkd_jax.pretrain --config configs/pretrain_cifar10.py --config.data.dir="$data"

  fast() { # PAIR STEPS SEED
    run "cifar10-$1-fast$2/seed$3" whole $teacher fastdfkd_jax.main --config "configs/cifar10.py:$1-fast$2" \
      --config.seed="$3" --config.data.dir="$data"
  }
  on_data() { # METHOD PAIR
    run "cifar10-$2-$1/seed0" part $teacher fastdfkd_jax.main --config "configs/$1.py:cifar10-$2" \
      --config.data.dir="$data" --config.transfer.dir="$data"
  }
  for seed in 0 1 2; do
    for steps in 5 10; do
      fast wrn40_2-wrn16_1 $steps $seed
    done
  done
  on_data kd wrn40_2-wrn16_1
  on_data scratch wrn40_2-wrn16_1
  for pair in wrn40_2-wrn40_1 wrn40_2-wrn16_2; do
    for steps in 5 10; do
      fast $pair $steps 0
    done
    on_data kd $pair
    on_data scratch $pair
  done
fi
pack_finished
pack_state
[ $failed = no ]
