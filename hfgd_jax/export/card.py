"""The model card of a bundle, its README.md: how to run it, classes with scores, data, settings, licence.

The lines between `---` are for the Hugging Face hub, which shows the file as the model's page.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from hfgd_jax.data.labels import LabelTable
from hfgd_jax.weights import sources


def card(
    described: Mapping[str, Any],
    table: LabelTable,
    config: ConfigDict,
    per_class: Mapping[str, float | None],
) -> str:
    """The text of a bundle's README.md.

    Args:
        described: what the manifest says, but for files and parity.
        table: the classes.
        config: of the run.
        per_class: class -> IoU in [0, 1] of this checkpoint; empty where the run has none.
    """
    score = "" if described["mIoU"] is None else f", mIoU {described['mIoU']:.4f} on its evaluation split"
    height, width = described["input"]["crop"]
    return f"""---
library_name: hfgd_jax
pipeline_tag: image-segmentation
tags:
- semantic-segmentation
- jax
---

# A segmentation model

Step {described["step"]} of a run of hfgd_jax{score}; trained on crops of {height}x{width}
(height, width). Variants: {", ".join(described["variants"])}. It runs on {", ".join(described["platforms"])}.

```
pip install jax numpy flatbuffers pillow
python loader.py . photo.jpg --output out
```

```python
import loader

model = loader.load(".")
mask = model(image)  # uint8 RGB [h, w, 3] of any size -> uint8 [h, w], or [b, h, w, 3] -> [b, h, w]
```

With hfgd_jax installed, `hfgd_jax.load("hf:OWNER/NAME")` fetches it from the hub, and
`hfgd_jax.load(FOLDER)` takes it from a folder.

## Classes

{_classes(table, per_class, config.data.eval_split)}

## How it was trained

{_settings(config)}

`config.json` has every field. The scores are of `{config.data.dataset}` alone; what the model does on other
images is for its user to find out.

## Licence

{sources.licence(config.model.backbone.weights)}.
The data that a model was trained on may have terms of its own.
"""


def _classes(table: LabelTable, per_class: Mapping[str, float | None], split: str) -> str:
    head, rule = "| value | class | colour |", "| ---: | --- | --- |"
    if per_class:
        head, rule = f"{head} IoU % on {_cell(split)} |", f"{rule} ---: |"
    lines = [head, rule]
    for index, (name, color) in enumerate(zip(table.classes, table.palette.tolist(), strict=True)):
        line = f"| {index} | {_cell(name)} | #{bytes(color).hex()} |"
        value = per_class.get(name)
        lines.append(f"{line} {'n/a' if value is None else f'{100 * value:.1f}'} |" if per_class else line)
    return "\n".join(lines)


def _settings(config: ConfigDict) -> str:
    model, optim, train = config.model, config.optim, config.train
    guidance = [name for name in ("tokens", "protect", "axial_attention") if model.guidance[name]]
    rows = {
        "data set": f"{config.data.dataset}, {config.data.num_classes} classes",
        "backbone": f"{model.backbone.name}, from {model.backbone.weights or 'random weights'}",
        "context encoder": model.context,
        "upsampler": f"{model.upsampler}, output stride {model.output_stride}",
        "guidance": ", ".join(guidance) or "none",
        "images": f"scaled by {config.data.input_scale:g}, crops of {'x'.join(map(str, config.data.crop))}",
        "steps": f"{train.steps} of {train.batch_size} crops, in {train.dtype}",
        "optimizer": f"{optim.name}, learning rate {optim.learning_rate:g}",
        "seed": train.seed,
    }
    lines = [f"| {name} | {_cell(str(value))} |" for name, value in rows.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *lines])


def _cell(text: str) -> str:
    """A text that stays in its cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
