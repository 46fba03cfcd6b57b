"""Plans a run on a TPU pod without one: memory, operations, collectives and time of a step.

python -m sora_jax.pod --config=configs/NAME.py --topology=v5p:4x4x8 [--config.KEY=VALUE ...]
    [--bucket=FRAMESxHEIGHTxWIDTH] [--batch=CLIPS] [--json=FILE]
    [--work=train|sample|text|vae|decode] [--dtype=float32|bfloat16|int8] [--search]
python -m sora_jax.pod --warm --config=configs/NAME.py --workdir=FOLDER [--config.KEY=VALUE ...]

The first compiles the real step with the TPU's own compiler, which `pip install "sora_jax[tpu]"`
brings, and needs neither data nor weights. With --search it looks for a mesh and a remat.

The second compiles, on the machine of the run and its devices, the steps of every bucket into the
folder where `train.py` looks for them.
"""

import dataclasses
import json
import pathlib

from absl import flags
from ml_collections import config_flags

from sora_jax import command
from sora_jax.pod.checks import batch_ways, check_division, check_state
from sora_jax.pod.chips import read_slice
from sora_jax.pod.compiling import Plan, compile_plan, plan_mesh, trace
from sora_jax.pod.programs import WORKS
from sora_jax.pod.report import make_report, tell
from sora_jax.pod.search import search
from sora_jax.pod.sizes import default_batch, read_sizes
from sora_jax.pod.warm import warm
from sora_jax.training.inherit import inherit

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "The slice, such as v5p:4x4x8 or v6e:16x16.")
BUCKET = flags.DEFINE_string("bucket", None, "FRAMESxHEIGHTxWIDTH; the config's largest if none.")
BATCH = flags.DEFINE_integer("batch", None, "Clips of the global batch; the config's if none.")
WORK = flags.DEFINE_enum("work", "train", sorted(WORKS), "Which program to plan.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16", "int8"],
    "Of the parameters with --work=sample and --work=text.",
)
JSON = flags.DEFINE_string("json", None, "A file for the numbers.")
SEARCH = flags.DEFINE_bool("search", False, "Look for the best mesh and remat.")
WARM = flags.DEFINE_bool("warm", False, "Compile a run's steps ahead, for the present devices.")
WORKDIR = flags.DEFINE_string("workdir", None, "With --warm: the work folder of the run.")
flags.mark_flag_as_required("config")


def plan_one(config, topology):
    """The report of the plan that the flags describe."""
    sizes = dataclasses.replace(read_sizes(config, BUCKET.value), held=DTYPE.value)
    mesh = plan_mesh(config, topology)
    clips = BATCH.value
    if clips is None:
        clips = default_batch(config, sizes, batch_ways(mesh.shape))
    check_division(sizes, mesh.shape, clips)
    plan = Plan(config, topology, sizes, clips, WORK.value)
    work = trace(plan, mesh)
    check_state(work.kinds, topology, mesh.shape)
    name = f"{WORK.value} of {clips} clips of {sizes.bucket} for {topology}"
    report = make_report(plan, mesh.shape, work, compile_plan(plan, name))
    print(tell(report))
    return report


def run():
    config = inherit(CONFIG.value)
    if WARM.value:
        if WORKDIR.value is None:
            raise ValueError("--warm needs --workdir=FOLDER, that of the run to come")
        return warm(config, WORKDIR.value)
    if TOPOLOGY.value is None:
        raise ValueError("--topology is missing: give a slice, such as --topology=v5p:4x4x8")
    if WORK.value in ("sample", "text") and config.task != "dit":
        raise ValueError(f"--work={WORK.value} needs the config of a transformer, not of a VAE")
    if DTYPE.value != "float32" and WORK.value not in ("sample", "text"):
        raise ValueError(
            f"--dtype={DTYPE.value} is for --work=sample and --work=text; with --work={WORK.value} "
            "parameters are float32: leave it out"
        )
    if SEARCH.value and WORK.value != "train":
        raise ValueError(f"--search is for training; leave out --work={WORK.value}")
    topology = read_slice(TOPOLOGY.value)
    if SEARCH.value:
        result = search(config, topology, BUCKET.value, BATCH.value)
    else:
        result = plan_one(config, topology)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(result, indent=1) + "\n")


def main(argv):
    if len(argv) > 1:
        command.fail(f"{argv[1]!r} belongs to no flag")
    command.show_log()
    try:
        run()
    except (ValueError, OSError) as error:
        command.fail(error)


if __name__ == "__main__":
    command.run(main)
