"""Makes the modules beside this file importable from all tests, and the screen wide enough for whole lines.

Test runners in parallel tell their processes how wide the runner's own screen is. Properties are tried with
the same cases in each run, so that a run speaks of the code alone; `--hypothesis-profile explore` tries other
cases each time.
"""

import os

from hypothesis import settings

os.environ["COLUMNS"] = "200"

settings.register_profile("explore", settings.get_profile("default"), derandomize=False)
settings.register_profile("same", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("same")
