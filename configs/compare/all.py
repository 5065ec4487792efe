"""Tables 1, 4 and 5 of the paper in a size for two CPU cores, the protocol `short`, from one folder of runs.

    python -m fastdfkd_jax.compare --config configs/compare/all.py --workdir DIR --config.data_dir=DATA \
        --config.teachers.resnet20=resnet20-12fca82f.th --config.other_data=folder:PICTURES

`--config.dry_run=true` says how long that takes. The records in results/ make the tables again, without any run:

    python -m fastdfkd_jax.compare --config configs/compare/all.py --workdir results/compare/short \
        --config.tables_only=true --config.other_data=npz:imagenet_even500_256_q90.npz
"""

from configs.compare import parts, table1, table4, table5
from fastdfkd_jax.errors import UserError


def get_config(variant=None):
    """The union of `table1.py:cpu`, `table4.py:cpu` and `table5.py:cpu`."""
    if variant is not None:
        raise UserError(f"unknown variant {variant!r}: expected none")
    return parts.union([module.get_config("cpu") for module in (table1, table4, table5)])
