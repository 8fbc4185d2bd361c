"""A web page that shows what networks see in an image, and fine-tunes them on photos (`acmix-zoo app`).

- `serve.py`: run the page; the command and a Space on the Hugging Face Hub start here
- `look_tab.py`, `tune_tab.py`: the two tabs of the page and their events; these files need gradio
- `decision.py`: what the page shows of a network's decision; `panels.py` and `overlays.py` draw it
- `fine_tuning.py`: training in a child process; `curves.py`: its progress; `archive.py`: unpacking the uploaded photos
- `space.py`: write a folder that runs the page as a Space
"""
