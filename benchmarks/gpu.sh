#!/usr/bin/env bash
# The first measurements on a GPU, in less than 8 minutes: benchmarks/gpu.sh [FOLDER]
#
# Parts come in the order of their worth, each with a limit in seconds; those that no longer fit into the time are left out.
# FOLDER (default: outputs/gpu) receives a log and a JSON file per part, gpu.json with all of them, and the table gpu.txt.
# PEER=SCRIPT MODEL=FOLDER adds diffusers' train_text_to_image_lora.py on the weights in MODEL.
# SMOKE=1 runs every part with small models, which tests this script on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=$(realpath -m "${1:-outputs/gpu}")
python=${PYTHON:-python}
deadline=${DEADLINE:-450}
export HF_HUB_OFFLINE=1 PYTHONPATH=$PWD
mkdir -p "$out" && rm -f "$out"/*.json "$out/parts.txt"

part() { # NAME LIMIT PROGRAM ARGUMENTS …
    local name=$1 limit=$2 program=$3 left=$((deadline - SECONDS)) start=$SECONDS status
    shift 3
    if ((left < limit / 3)); then
        echo "$name left-out 0" >>"$out/parts.txt"
        return
    fi
    timeout -k 5 $((limit < left ? limit : left)) "$python" "benchmarks/$program.py" "$@" "json=$out/$name.json" >"$out/$name.log" 2>&1
    status=$?
    echo "$name $status $((SECONDS - start))" >>"$out/parts.txt"
    tail -n 1 "$out/$name.log" | cut -c1-150 | sed "s/^/$name ($status): /"
}

short="sampling.steps=2 prompts=[one] method.text_encoder=false"
sd="model=sd15 model.weights=random rank=16 $short" xl="model=sdxl model.weights=random rank=16 $short"
sd_sft="model=sd15 model.weights=random method=sft gradient_checkpointing=true $short"
xl_sft="model=sdxl model.weights=random method=sft gradient_checkpointing=true $short"
bf16="precision=bf16" fp16="precision=fp16" fast="rounds=3 per=10 warm=8" slow="rounds=2 per=4 warm=4"
sd_sampling="model=sd15" xl_sampling="model=sdxl" batches="1 4 16" sft_batches="1 8 32"
if [[ -n ${SMOKE:-} ]]; then
    small="model.weights=random $short accelerator=cpu"
    sd="model=tiny rank=4 $small" xl="model=tiny_xl rank=4 $small"
    sd_sft="model=tiny method=sft gradient_checkpointing=true $small" xl_sft="model=tiny_xl method=sft gradient_checkpointing=true $small"
    fp16=$bf16 fast="rounds=2 per=2 warm=2" slow=$fast # a CPU has no fp16
    sd_sampling="model=tiny" xl_sampling="model=tiny_xl" batches="1 2 3" sft_batches="1 2 3"
fi
read -r b1 b2 b3 <<<"$batches"
read -r s1 s2 s3 <<<"$sft_batches"

# shellcheck disable=SC2086  # variables hold several arguments
{
    part sd15_waits 50 syncs $sd $bf16
    part sd15_lora_b1 45 step $sd $bf16 $fast batch_size=$b1
    part sdxl_lora_b1 90 step $xl $bf16 $slow batch_size=$b1
    part sd15_lora_b16 45 step $sd $bf16 $slow batch_size=$b3
    part sd15_sft_b8 45 step $sd_sft $bf16 $slow batch_size=$s2
    part sd15_sampling 40 sampling $sd_sampling $bf16 batch=4
    part sd15_lora_b1_fp16 45 step $sd $fp16 $fast batch_size=$b1
    part sd15_lora_b16_contiguous 45 step $sd $bf16 $slow batch_size=$b3 channels_last=0
    part sdxl_lora_b4 90 step $xl $bf16 $slow batch_size=$b2
    part sdxl_sft_b1 90 step $xl_sft $bf16 $slow batch_size=$s1
    if [[ -n ${PEER:-} ]]; then
        part peer 90 peer "$PEER" "model=$MODEL" rounds=1 steps=40 batch=4 resolution=512 $bf16
    fi
    part sd15_lora_b4 40 step $sd $bf16 $slow batch_size=$b2
    part sd15_sft_b32 45 step $sd_sft $bf16 $slow batch_size=$s3
    part sd15_sft_b1 40 step $sd_sft $bf16 $slow batch_size=$s1
    part sdxl_lora_b16 90 step $xl $bf16 $slow batch_size=$b3
    part sdxl_sft_b8 90 step $xl_sft $bf16 $slow batch_size=$s2
    part sdxl_sampling 60 sampling $xl_sampling $bf16 batch=4 rounds=1
    part sd15_waits_sft 50 syncs $sd_sft $bf16
    part sd15_compile 120 step $sd $bf16 $fast batch_size=$b1 compile=regional
    part sd15_graphs 120 step $sd $bf16 $fast batch_size=$b1 compile=graphs # last: cold compiles overrun
}
"$python" benchmarks/gpu_table.py "$out" | tee "$out/gpu.txt"
