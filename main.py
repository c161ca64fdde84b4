"""Pre-train DinoSR: python main.py --config=configs/base.py [--workdir=DIR] [--config.FIELD=VALUE].

Fine-tune a network: python main.py --config=configs/finetune_10h.py --config.init=RUN.

Run it again with the same workdir and it goes on from its last checkpoint.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from dinosr_jax.files import LOCAL, is_url  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "Training configuration (a .py file).")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: config.workdir.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes of a job.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Checks the configuration, opens the data and trains."""
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; see python main.py --help")
    from dinosr_jax.cli.start_run import run
    from dinosr_jax.errors import UserError
    from dinosr_jax.progress import log_to_terminal
    from dinosr_jax.training.processes import join

    log_to_terminal()
    try:
        if _DISTRIBUTED.value:
            join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        run(_CONFIG.value, workdir=_WORKDIR.value)
    except (UserError, ValueError, OSError) as e:
        sys.exit(f"error: {e}")


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the flags; no such file, or an unknown config field, ends the program with one line."""
    try:
        rest = app.parse_flags_with_usage(argv)
        _CONFIG.value.keys()  # raises what went wrong when the file was read
        return rest
    except OSError as error:
        urls = list(filter(is_url, (argument.rpartition("=")[2] for argument in argv)))
        why = f"found the URL {urls[0]}, expected {LOCAL}" if urls else error.__cause__ or error
        sys.exit("error: --config: " + " ".join(str(why).split()))
    except AttributeError as error:
        sys.exit("error: unknown field in a --config.FIELD flag: " + " ".join(str(error).split()))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
