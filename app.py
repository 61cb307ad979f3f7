"""StreamVGGT as a web page: ``python app.py``, and the entry point of a Hugging Face Space."""

from demo.engine import Engine
from demo.handlers import open_runs
from demo.ui import build_demo, launch_options

engine = Engine()
runs = open_runs(engine)
demo = build_demo(runs, engine)

if __name__ == "__main__":
    demo.launch(**launch_options(runs))
