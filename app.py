"""StreamVGGT as a web page: ``python app.py``, and the entry point of a Hugging Face Space."""

from demo.ui import build_demo

demo = build_demo()

if __name__ == "__main__":
    demo.launch(max_file_size="200mb", run_history=False)
