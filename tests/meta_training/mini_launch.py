"""`innerloop meta-train`, for launchers that start a script in several processes."""

import sys

from mini_run import call

from meta_training import train_command

if __name__ == "__main__":
    sys.exit(call(train_command, *sys.argv[1:]))
