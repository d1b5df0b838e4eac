"""A trained model behind HTTP on this machine: a page, and `POST /predict`.

Not here: what loads the model (`tools/serve.py`) and what predicts (`inference/`). Starlette, uvicorn and
python-multipart are an extra (`pip install "hfgd_jax[serve]"`) and imported where they are used.
"""
