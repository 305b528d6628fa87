"""Makes the modules beside this file importable from all tests, and the screen wide enough for whole lines.

Test runners in parallel tell their processes how wide the runner's own screen is.
"""

import os

os.environ["COLUMNS"] = "200"
