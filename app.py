"""StreamVGGT as a web page: ``python app.py``, and the entry point of a Hugging Face Space."""

import os

from demo.engine import Engine
from demo.handlers import open_runs
from demo.ui import build_demo, launch_options

engine = Engine()
runs = open_runs(engine)
demo = build_demo(runs, engine)

# The proxies of a Space are in a private network and say who asks; elsewhere this is for the operator to set.
if "SPACE_ID" in os.environ:
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "127.0.0.1,10.0.0.0/8")

if __name__ == "__main__":
    demo.launch(**launch_options(runs))
