r"""Makes Tables 1, 4 and 5 at a size for two CPU cores (protocol `short`), from one folder of runs.

There are two versions of Table 1: with equal student steps, and with the paper's ratios of synthesis seconds
(`synthesis.py`).

    fastdfkd compare all --workdir DIR data_dir=DATA \
        teachers.resnet20=resnet20-12fca82f.th other_data=folder:PICTURES

`dry_run=true` estimates how long that takes. The records in results/ are enough to make the tables again, without any
run, in every format and in the documents that show them:

    fastdfkd compare all --workdir results/compare/short \
        tables_only=true other_data=npz:imagenet_even500_256_q90.npz \
        into=README.md,docs/results.md

For Table 3, use `configs/compare/table3.py:cpu` and results/compare/camvid in the same way.
"""

from fastdfkd_jax.configs.compare import parts, synthesis, table1, table4, table5
from fastdfkd_jax.errors import UserError


def get_config(variant=None):
    """Returns the union of `table1.py:cpu`, `synthesis.py`, `table4.py:cpu` and `table5.py:cpu`."""
    if variant is not None:
        raise UserError(f"unknown variant {variant!r}: this config has none, leave it out")
    tables = [module.get_config("cpu") for module in (table1, table4, table5)]
    return parts.union([tables[0], synthesis.get_config(), *tables[1:]])
