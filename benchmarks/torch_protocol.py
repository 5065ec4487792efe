"""The short protocol of configs/cifar10.py in PyTorch: what accuracy and time the same mathematics gives there.

    python -m benchmarks.torch_protocol --teacher resnet20.th --data-dir DIR --seed 0 --workdir DIR

The generator and the student begin with the weights that `fastdfkd_jax.main` draws for the seed; views, labels and
latents are torch's own. As in the released code, images are truncated to uint8 and the pool is read shuffled, without
replacement.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import torch_fastdfkd
from fastdfkd_jax import convert, data
from fastdfkd_jax.configs import cifar10
from fastdfkd_jax.convert.torch_twins.classifiers import twin
from fastdfkd_jax.storage.files import write_atomically
from fastdfkd_jax.training.build import assemble
from fastdfkd_jax.training.programs import initial_state

VARIANT = "resnet20-wrn16_1-fast5-short"


def read_forever(pool: Tensor, batch: int):
    """Batches of the pool, shuffled anew at each pass, the last of a pass as small as it comes."""
    while True:
        yield from pool[torch.randperm(len(pool))].split(batch)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Returns the top-1 accuracy in percent on normalised images."""
    network.eval()
    logits = torch.cat([network(part) for part in images.split(batch)])
    return 100 * (logits.argmax(1) == labels).float().mean().item()


def run(config: Any, workdir: Path) -> dict[str, Any]:
    """Runs the protocol; metrics.jsonl and summary.json are written as `fastdfkd_jax.main` writes its own."""
    torch.manual_seed(config.seed)
    parts = assemble(config)
    init_key, *_ = jax.random.split(jax.random.key(config.seed), 3)
    initial = initial_state(init_key, parts)
    spec = parts.teacher.spec
    generator_vars = {"params": initial["method"].generator, "batch_stats": {}}
    teacher, student, meta = (
        torch_fastdfkd.load_weights(module, convert.to_state_dict(variables))
        for module, variables in (
            (twin(spec), parts.teacher_vars),
            (twin(parts.student.spec), initial["student"].variables),
            (torch_fastdfkd.generator(config.generator.latent_dim, config.generator.width), generator_vars),
        )
    )
    teacher.requires_grad_(False)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    outer = torch.optim.Adam(meta.parameters(), config.meta.lr, betas=(0.5, 0.999))
    synthesizer = torch_fastdfkd.Synthesizer(teacher, student, meta, outer, mean, std)
    kd = config.kd
    optimizer = torch.optim.SGD(student.parameters(), kd.lr, momentum=kd.momentum, weight_decay=kd.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, config.calls - config.warmup_calls, eta_min=kd.final_lr
    )
    test: data.Dataset = parts.test  # pyright: ignore[reportAssignmentType] - the config names one
    images = torch.from_numpy(np.asarray(test.images)).permute(0, 3, 1, 2).float() / 255
    images, labels = (images - mean) / std, torch.from_numpy(np.asarray(test.labels)).long()

    batch, pool = config.synthesis_batch, torch.empty((0, 3, 32, 32), dtype=torch.uint8)
    readings, seconds = [], {"synthesis_seconds": 0.0, "distill_seconds": 0.0}
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "metrics.jsonl", "w") as log:

        def record(call: int, **values: float) -> None:
            log.write(json.dumps({"call": call, **values}) + "\n")
            log.flush()

        for call in range(1, config.calls + 1):
            start = time.perf_counter()
            latents = torch.randn(batch, config.generator.latent_dim)
            wanted = torch.randint(0, spec.num_classes, (batch,))
            adversarial = call >= config.warmup_calls
            steps = config.fastdfkd.num_steps
            made, observed = synthesizer.synthesize(latents, wanted, steps, adversarial, torch_fastdfkd.random_view)
            seconds["synthesis_seconds"] += time.perf_counter() - start
            pool = torch.cat([pool, (made * 255).to(torch.uint8)])
            record(call, **{f"synthesis/{name}": value for name, value in observed.items()})
            if call <= config.warmup_calls:
                continue
            start, batches, losses = time.perf_counter(), read_forever(pool, kd.batch), []
            for _ in range(kd.steps_per_call):
                inputs = (torch_fastdfkd.random_view(next(batches).float() / 255) - mean) / std
                losses.append(torch_fastdfkd.kd_step(teacher, student, optimizer, inputs, kd.temperature))
            schedule.step()
            seconds["distill_seconds"] += time.perf_counter() - start
            record(call, **{"kd/loss": float(np.mean(losses[-20:]))})
            if call % config.eval_every == 0:
                readings.append(accuracy(student, images, labels))
                record(call, **{"eval/accuracy": readings[-1]})
                print(f"call {call}: {readings[-1]:.2f} %, {seconds}", flush=True)
    return {
        "seed": config.seed,
        "threads": torch.get_num_threads(),
        "student_accuracy_last": readings[-1],
        "student_accuracy_best_on_test": max(readings),
        **seconds,
    }


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--teacher", required=True, help="PyTorch checkpoint of CIFAR-10 ResNet-20")
    parser.add_argument("--data-dir", required=True, help="folder of the prepared CIFAR-10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, required=True)
    args = parser.parse_args()
    config = cifar10.get_config(VARIANT)
    config.teacher.checkpoint, config.data.dir, config.seed = args.teacher, args.data_dir, args.seed
    summary = run(config, args.workdir)
    text = json.dumps(summary, indent=2).encode()
    write_atomically(args.workdir / "summary.json", lambda file: file.write(text))


if __name__ == "__main__":
    main()
