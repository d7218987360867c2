#!/bin/sh
# The studies of docs/results and their pages. Trials that ended are kept, so with the run folders at
# hand only the pages are made again. From nothing: about three hours on two cores.
#   scripts/results.sh [PAGE...]        CIFAR10=DIR: CIFAR-10 as JPEG q75, train/ and test/ of one folder a class
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

page() { vitc report "studies/$1" --page "docs/results/$1.md"; }

quick64() {
    vitc study quick --draws 64 --out studies/quick64
}
optimizer() {
    vitc study paper fig3 --lengths 4 8 15 30 --count 5 --out studies/optimizer
}
table3() {
    vitc study paper table3 --count 5 --out studies/table3
}
rivals() {
    vitc study hparams fashion_vit_p --stems conv scaled_relu dual_patchnorm overlap depthwise norm_free patchify \
        --optims adamw sgd --draws 12 --train.epochs 3 --train.batch 64 --train.eval_every_epochs 3 \
        --data.max_train 3200 --out studies/rivals
}
cifar10_jpeg_q75() {
    if [ ! -d "${CIFAR10:-./cifar10}" ]; then
        echo "cifar10_jpeg_q75 left out: CIFAR10=DIR names no folder with train/ and test/." >&2
        return 1
    fi
    vitc study hparams cifar10_vit_c cifar10_vit_p --data "${CIFAR10:-./cifar10}" --optims adamw sgd --draws 8 \
        --train.epochs 3 --train.batch 64 --train.eval_every_epochs 3 --data.max_train 8000 --out studies/cifar10_jpeg_q75
}
# The rungs of the batch ladder (docs/results/plans.md): 16 draws of each optimizer named.
ladder() {  # NAME, BATCH, "OPTIMIZER..."; lr of AdamW from-to, lr of SGD from-to; more options
    name=$1 batch=$2 optims=$3 adamw_low=$4 adamw_high=$5 sgd_low=$6 sgd_high=$7
    shift 7
    set -- --range sgd:optim.lr "$sgd_low" "$sgd_high" --range sgd:optim.weight_decay 1.25e-5 4e-4 "$@"
    if [ "$optims" != sgd ]; then
        set -- --range adamw:optim.lr "$adamw_low" "$adamw_high" --range adamw:optim.weight_decay 0.0125 0.4 "$@"
    fi
    # shellcheck disable=SC2086  # the optimizers are several words
    vitc study hparams fashion_vit_p --models vit_c_tiny vit_p_tiny --reference vit_p_tiny --optims $optims \
        --draws 16 --train.epochs 6 --train.batch "$batch" --train.eval_every_epochs 6 --train.precision fp32 \
        --out "studies/$name" "$@"
}
ladder1024() {  # the first plan's: SGD's range moved in proportion to the batch
    ladder ladder1024 1024 "adamw sgd" 7e-4 4.5e-2 0.1 6.4 --control
}
ladder1024_sgd() {  # the second plan's: one range of SGD for every batch
    ladder ladder1024_sgd 1024 sgd - - 0.00625 0.4 --control
}
ladder256() {
    ladder ladder256 256 "adamw sgd" 3.5e-4 2.25e-2 0.00625 0.4
}
ladder64() {
    ladder ladder64 64 "adamw sgd" 1.8e-4 1.15e-2 0.00625 0.4
}
# All optimizers on both stems (docs/results/plans.md); needs the extra `optim`.
optimizers() {
    vitc study hparams fashion_vit_p --models vit_c_tiny vit_p_tiny --reference vit_p_tiny \
        --optims adamw nadamw muon lion adamw_schedulefree sgd sgd_schedulefree --draws 16 \
        --train.epochs 3 --train.batch 64 --train.eval_every_epochs 3 --train.precision fp32 --data.max_train 3200 \
        --out studies/optimizers
}

for name in "${@:-quick64 optimizer table3 rivals cifar10_jpeg_q75}"; do
    for study in $name; do
        if "$study"; then page "$study"; fi
    done
done
