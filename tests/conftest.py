"""Makes the modules beside this file importable from all tests, and the screen wide enough for whole lines.

Test runners in parallel tell their processes how wide the runner's own screen is. Properties are tried with
the same cases in each run, so that a run speaks of the code alone; `--hypothesis-profile explore` tries other
cases each time. None of them is late, however slow the machine is.
"""

import os

from hypothesis import HealthCheck, settings

os.environ["COLUMNS"] = "200"

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", unhurried, derandomize=False)
settings.register_profile("same", unhurried, derandomize=True, database=None)
settings.load_profile("same")
