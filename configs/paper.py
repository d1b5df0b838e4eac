"""Every row of the paper's tables that this system can run, as `TABLE/ROW`.

    python -m hfgd_jax.main --config configs/paper.py:table9/hfgd_os4,weights=resnet50.safetensors \\
        --workdir runs/table9_hfgd_os4

`python -m hfgd_jax.tools.paper` lists them with the paper's figures, their cost and their commands. Besides
the tables there are the figures of the text: `section5.1/probe`, `section5.1/probe_stop` and
`section5.2/no_stop_gradients`.

Arguments: the row; weights (a file for the backbone; rows from scratch take none); setting (plain | advanced
| stronger, in place of the row's); tiny; without_data.

Readings, where the paper leaves a choice:
- Ablations are plain, comparisons with other methods advanced (Sec. 4), so the Swin-Large ablations of Tables
  6 and 7 are plain too; `setting=advanced` makes them AdamW.
- "stronger" (the * of Table 10) is the advanced setting with the focal loss (gamma 2) and a Dice loss of
  weight 1; the stronger pre-training is the weight file's.
- Swin-Large and ConvNeXt-Large start from ImageNet-22k weights, ResNet-50 from ImageNet-1k.
- Tables 15 and 16 do not give the output stride: 4, since OS=2 is for Cityscapes (Sec. 3.3). ADE20K trains
  for 40K iterations, like the rest.
- "D8" of Table 8 is a backbone dilated to OS=8; the caption's OS=4 is the prediction's.
- Table 14 trains on the training images alone ("the other settings remain unchanged"). Labels of the test
  images are not public: the run scores on the validation images.
- Crops are the paper's for every backbone; the models of ConvNeXt and Swin pad 513 to 544 (`geometry.py`).
- The figures of `section5.1` are the auxiliary FCN's, and those rows score it (`eval.branch`).

The rows "strictly follow CAR" (Sec. 4): where the paper is silent they have the settings of its public code
(docs/readings.md), also where those are not this project's defaults: biases in the context's self-attention,
cross-entropies averaged over all pixels and ConvNeXt-Large's stochastic depth of 0.3; in the plain setting L2
with a gradient of 2e-4 w, in the advanced one other distortions of colours.
"""

import difflib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.config import recipe
from hfgd_jax.errors import UserError


class DataSet(NamedTuple):
    """A data set as the paper uses it; `crop` is (height, width)."""

    name: str
    num_classes: int
    crop: tuple[int, int] = (513, 513)
    eval_split: str = "val"


PASCAL = DataSet("pascal_context", 59)
STUFF164K = DataSet("coco_stuff164k", 171)
STUFF10K = DataSet("coco_stuff10k", 171, eval_split="test")
CITYSCAPES = DataSet("cityscapes", 19, (513, 1025))
ADE20K = DataSet("ade20k", 150, (641, 641))


class Row(NamedTuple):
    """One line of a table: the paper's words and figures, and what they stand for.

    `upsampler` and `hfgm` are fields of `config.model`; `steps` None means the backbone's usual number.
    """

    label: str
    paper: dict[str, float]
    backbone: str
    upsampler: dict[str, Any]
    context: str
    hfgm: dict[str, bool] = {}
    data: DataSet = PASCAL
    setting: str = "plain"
    steps: int | None = None
    batch_size: int = 16
    pretrained: bool = True


# Backbones, and the weight file that a command names for each; the stronger setting has its own.
R50, SWIN, CONVNEXT = "resnet50", "swin_l", "convnext_l"
WEIGHTS = {
    R50: "resnet50.safetensors",
    SWIN: "swin_l_22k_384.safetensors",
    CONVNEXT: "convnext_l_22k.safetensors",
    "stronger": "convnext_l_stronger.safetensors",
}
MF_SCALES = (0.5, 0.75, 1, 1.25, 1.5, 1.75)  # of the multi-scale evaluation, each with its mirror image
USUAL_STEPS = {R50: 30_000, SWIN: 40_000, CONVNEXT: 40_000}

# Dilation or upsampler.
OS32 = {"upsampler": "none", "output_stride": 32}
D8 = {"upsampler": "none", "output_stride": 8, "backbone.output_stride": 8}
SFPN = {"upsampler": "sfpn", "output_stride": 4}
U_SFPN = {"upsampler": "u_sfpn", "output_stride": 4}
U_SFPN_OS2 = {"upsampler": "u_sfpn", "output_stride": 2}
FAPN = {"upsampler": "fapn", "output_stride": 4}
UPER = {"upsampler": "upernet", "output_stride": 4}
DEEPLAB = {"upsampler": "deeplabv3plus", "output_stride": 4, "backbone.output_stride": 8}

# HFGM, and the two wholes that most rows are made of.
GUIDANCE = {"guidance.tokens": True, "guidance.protect": True}
AA = {"guidance.axial_attention": True}
FULL = GUIDANCE | AA
UNSTOPPED = FULL | {"guidance.protect": False, "guidance.stop_gradient": False}
PROBE = {"guidance.probe": True}
PROBE_STOP = PROBE | {"guidance.probe_stop_gradient": True}
FCN = (R50, OS32, "identity")
HFGD = (U_SFPN, "cae", FULL)
HFGD_OS2 = (U_SFPN_OS2, "cae", FULL)

# The default, with the public code's distortion of colours, is the advanced setting, `config.set_plain` the
# plain one; this is added by the stronger.
STRONGER = {"focal_gamma": 2.0, "dice": 1.0}
SETTINGS = ("plain", "advanced", "stronger")

TITLES = {
    "table1": "Dilation against SemanticFPN, by extra encoding; Pascal Context",
    "table2": "ImageNet weights against training from scratch; Pascal Context",
    "table3": "HFGM without extra encoding; Pascal Context",
    "table4": "CAE against SA (CAR); Pascal Context",
    "table5": "HFGM with the CAE; Pascal Context",
    "table6": "SFPN against U-SFPN, with CAE and HFGM; Pascal Context",
    "table7": "The three modules; Pascal Context",
    "table8": "HFGM around other upsamplers; Pascal Context",
    "table9": "Computation at 513x513; Pascal Context",
    "table10": "Comparison on Pascal Context",
    "table11": "Comparison on COCOStuff164k",
    "table12": "Output strides; Cityscapes validation set",
    "table13": "Comparison on the Cityscapes validation set",
    "table14": "Comparison on the Cityscapes test set",
    "table15": "Comparison on ADE20K",
    "table16": "Comparison on COCOStuff10k",
    "table17": "ImageNet weights against training from scratch; COCOStuff10k",
    "section5.1": "The text's auxiliary FCN beside SemanticFPN; Pascal Context",
    "section5.2": "The text's full HFGM without stop-gradients; Pascal Context",
}

ROWS = {
    "table1/identity_os32": Row("ResNet-50, -, Identity", {"mIoU": 45.87}, *FCN),
    "table1/identity_d8": Row("ResNet-50, Dilation OS=8, Identity", {"mIoU": 47.72}, R50, D8, "identity"),
    "table1/identity_sfpn": Row("ResNet-50, SFPN OS=4, Identity", {"mIoU": 47.14}, R50, SFPN, "identity"),
    "table1/aspp_os32": Row("ResNet-50, -, ASPP", {"mIoU": 46.41}, R50, OS32, "aspp"),
    "table1/aspp_d8": Row("ResNet-50, Dilation OS=8, ASPP", {"mIoU": 48.59}, R50, D8, "aspp"),
    "table1/aspp_sfpn": Row("ResNet-50, SFPN OS=4, ASPP", {"mIoU": 47.81}, R50, SFPN, "aspp"),
    "table1/ocr_os32": Row("ResNet-50, -, OCR", {"mIoU": 45.50}, R50, OS32, "ocr"),
    "table1/ocr_d8": Row("ResNet-50, Dilation OS=8, OCR", {"mIoU": 48.23}, R50, D8, "ocr"),
    "table1/ocr_sfpn": Row("ResNet-50, SFPN OS=4, OCR", {"mIoU": 47.39}, R50, SFPN, "ocr"),
    "table1/sa_os32": Row("ResNet-50, -, SA", {"mIoU": 45.02}, R50, OS32, "sa"),
    "table1/sa_d8": Row("ResNet-50, Dilation OS=8, SA", {"mIoU": 48.32}, R50, D8, "sa"),
    "table1/sa_sfpn": Row("ResNet-50, SFPN OS=4, SA", {"mIoU": 45.90}, R50, SFPN, "sa"),
    "table1/sa_car_os32": Row("ResNet-50, -, SA (CAR)", {"mIoU": 47.18}, R50, OS32, "sa_car"),
    "table1/sa_car_d8": Row("ResNet-50, Dilation OS=8, SA (CAR)", {"mIoU": 50.50}, R50, D8, "sa_car"),
    "table1/sa_car_sfpn": Row("ResNet-50, SFPN OS=4, SA (CAR)", {"mIoU": 48.51}, R50, SFPN, "sa_car"),
    "table2/imagenet_30k": Row("ImageNet + FCN, 30K", {"mIoU": 45.87}, *FCN, steps=30_000),
    "table2/scratch_30k": Row("Scratch + FCN, 30K", {"mIoU": 26.13}, *FCN, steps=30_000, pretrained=False),
    "table2/scratch_90k": Row("Scratch + FCN, 90K", {"mIoU": 31.38}, *FCN, steps=90_000, pretrained=False),
    "table2/scratch_180k": Row("Scratch + FCN, 180K", {"mIoU": 34.00}, *FCN, steps=180_000, pretrained=False),
    "table3/sfpn": Row("SFPN, Identity, -", {"mIoU": 47.14}, R50, SFPN, "identity"),
    "table3/guidance": Row("SFPN, Identity, + guidance", {"mIoU": 47.67}, R50, SFPN, "identity", GUIDANCE),
    "table3/axial_attention": Row("SFPN, Identity, + AA", {"mIoU": 47.88}, R50, SFPN, "identity", AA),
    "table3/full": Row("SFPN, Identity, full", {"mIoU": 48.94}, R50, SFPN, "identity", FULL),
    "table4/sa_car": Row("ResNet-50, SA (CAR)", {"mIoU": 47.18}, R50, OS32, "sa_car"),
    "table4/cae": Row("ResNet-50, CAE", {"mIoU": 47.35}, R50, OS32, "cae"),
    "table4/sfpn_sa_car": Row("ResNet-50 + SFPN, SA (CAR)", {"mIoU": 48.51}, R50, SFPN, "sa_car"),
    "table4/sfpn_cae": Row("ResNet-50 + SFPN, CAE", {"mIoU": 48.76}, R50, SFPN, "cae"),
    "table4/full_sa_car": Row("ResNet-50 + SFPN, SA (CAR), HFGM", {"mIoU": 50.00}, R50, SFPN, "sa_car", FULL),
    "table4/full_cae": Row("ResNet-50 + SFPN, CAE, HFGM", {"mIoU": 50.28}, R50, SFPN, "cae", FULL),
    "table5/sfpn": Row("SFPN, CAE, -", {"mIoU": 48.76}, R50, SFPN, "cae"),
    "table5/guidance": Row("SFPN, CAE, + guidance", {"mIoU": 49.22}, R50, SFPN, "cae", GUIDANCE),
    "table5/axial_attention": Row("SFPN, CAE, + AA", {"mIoU": 49.06}, R50, SFPN, "cae", AA),
    "table5/full": Row("SFPN, CAE, full", {"mIoU": 50.28}, R50, SFPN, "cae", FULL),
    "table6/resnet50_sfpn": Row("ResNet-50, SFPN", {"mIoU": 50.28}, R50, SFPN, "cae", FULL),
    "table6/resnet50_u_sfpn": Row("ResNet-50, U-SFPN", {"mIoU": 50.76}, R50, *HFGD),
    "table6/swin_l_sfpn": Row("Swin-Large, SFPN", {"mIoU": 59.32}, SWIN, SFPN, "cae", FULL),
    "table6/swin_l_u_sfpn": Row("Swin-Large, U-SFPN", {"mIoU": 60.46}, SWIN, *HFGD),
    "table7/identity_sfpn": Row("ResNet-50, Identity, SFPN, -", {"mIoU": 47.14}, R50, SFPN, "identity"),
    "table7/cae_sfpn": Row("ResNet-50, CAE, SFPN, -", {"mIoU": 48.76}, R50, SFPN, "cae"),
    "table7/identity_u_sfpn": Row("ResNet-50, Identity, U-SFPN, -", {"mIoU": 46.99}, R50, U_SFPN, "identity"),
    "table7/cae_u_sfpn": Row("ResNet-50, CAE, U-SFPN, -", {"mIoU": 48.67}, R50, U_SFPN, "cae"),
    "table7/full": Row("ResNet-50, CAE, U-SFPN, HFGM", {"mIoU": 50.76}, R50, *HFGD),
    "table7/swin_l_cae_sfpn": Row("Swin-Large, CAE, SFPN, -", {"mIoU": 56.78}, SWIN, SFPN, "cae"),
    "table7/swin_l_identity_u_sfpn": Row(
        "Swin-Large, Identity, U-SFPN, -", {"mIoU": 58.69}, SWIN, U_SFPN, "identity"
    ),
    "table7/swin_l_cae_u_sfpn": Row("Swin-Large, CAE, U-SFPN, -", {"mIoU": 55.76}, SWIN, U_SFPN, "cae"),
    "table7/swin_l_full": Row("Swin-Large, CAE, U-SFPN, HFGM", {"mIoU": 60.46}, SWIN, *HFGD),
    "table8/u_sfpn": Row("R50, U-SFPN, CAE, -", {"mIoU": 48.67}, R50, U_SFPN, "cae"),
    "table8/u_sfpn_full": Row("R50, U-SFPN, CAE, HFGM", {"mIoU": 50.76}, R50, *HFGD),
    "table8/fapn": Row("R50, FaPN, -, -", {"mIoU": 47.50}, R50, FAPN, "identity"),
    "table8/fapn_full": Row("R50, FaPN, -, HFGM", {"mIoU": 49.87}, R50, FAPN, "identity", FULL),
    "table8/upernet": Row("R50, Uper, PPM, -", {"mIoU": 48.25}, R50, UPER, "ppm"),
    "table8/upernet_full": Row("R50, Uper, PPM, HFGM", {"mIoU": 49.96}, R50, UPER, "ppm", FULL),
    "table8/deeplabv3plus": Row("R50 (D8), DeepLabV3+, ASPP, -", {"mIoU": 48.11}, R50, DEEPLAB, "aspp"),
    "table8/deeplabv3plus_full": Row(
        "R50 (D8), DeepLabV3+, ASPP, HFGM", {"mIoU": 49.70}, R50, DEEPLAB, "aspp", FULL
    ),
    "table9/sa_car_d8": Row("SA (CAR), ResNet-50 (D8)", {"GFLOPs": 158.96, "mIoU": 50.50}, R50, D8, "sa_car"),
    "table9/sfpn": Row("SemanticFPN, ResNet-50", {"GFLOPs": 45.65, "mIoU": 47.14}, R50, SFPN, "identity"),
    "table9/hfgd_os4": Row("HFGD (OS=4), ResNet-50", {"GFLOPs": 71.63, "mIoU": 50.76}, R50, *HFGD),
    "table9/hfgd_os2": Row("HFGD (OS=2), ResNet-50", {"GFLOPs": 153.62, "mIoU": 51.00}, R50, *HFGD_OS2),
    "table10/hfgd_os4": Row(
        "HFGD (OS=4), ConvNeXt-L", {"SS": 63.8, "MF": 64.9}, CONVNEXT, *HFGD, PASCAL, "advanced"
    ),
    "table10/hfgd_os4_stronger": Row(
        "HFGD (OS=4)*, ConvNeXt-L", {"SS": 64.9, "MF": 65.6}, CONVNEXT, *HFGD, PASCAL, "stronger"
    ),
    "table11/hfgd_os4": Row(
        "HFGD (OS=4), ConvNeXt-L", {"SS": 49.0, "MF": 49.4}, CONVNEXT, *HFGD, STUFF164K, "advanced"
    ),
    "table12/sfpn": Row(
        "SemanticFPN, ResNet-50, OS=4", {"mIoU": 76.44}, R50, SFPN, "identity", data=CITYSCAPES
    ),
    "table12/hfgd_os4": Row("HFGD, ResNet-50, OS=4", {"mIoU": 79.11}, R50, *HFGD, CITYSCAPES),
    "table12/hfgd_os2": Row("HFGD, ResNet-50, OS=2", {"mIoU": 79.81}, R50, *HFGD_OS2, CITYSCAPES),
    "table13/hfgd_os4": Row(
        "HFGD (OS=4), ConvNeXt-L", {"SS": 83.1, "MF": 83.8}, CONVNEXT, *HFGD, CITYSCAPES, "advanced", 60_000
    ),
    "table13/hfgd_os2": Row(
        "HFGD (OS=2), ConvNeXt-L",
        {"SS": 83.2, "MF": 84.0},
        CONVNEXT,
        *HFGD_OS2,
        CITYSCAPES,
        "advanced",
        80_000,
    ),
    "table14/hfgd_os2": Row(
        "HFGD (OS=2), ConvNeXt-L", {"mIoU": 83.3}, CONVNEXT, *HFGD_OS2, CITYSCAPES, "advanced", 80_000, 32
    ),
    "table15/hfgd": Row("HFGD, ConvNeXt-L", {"SS": 54.3, "MF": 55.4}, CONVNEXT, *HFGD, ADE20K, "advanced"),
    "table16/hfgd": Row("HFGD, ConvNeXt-L", {"SS": 49.5, "MF": 50.3}, CONVNEXT, *HFGD, STUFF10K, "advanced"),
    "table17/imagenet_30k": Row("ImageNet + FCN, 30K", {"mIoU": 32.92}, *FCN, data=STUFF10K, steps=30_000),
    "table17/scratch_30k": Row(
        "Scratch + FCN, 30K", {"mIoU": 16.70}, *FCN, data=STUFF10K, steps=30_000, pretrained=False
    ),
    "table17/scratch_90k": Row(
        "Scratch + FCN, 90K", {"mIoU": 22.62}, *FCN, data=STUFF10K, steps=90_000, pretrained=False
    ),
    "table17/scratch_180k": Row(
        "Scratch + FCN, 180K", {"mIoU": 24.62}, *FCN, data=STUFF10K, steps=180_000, pretrained=False
    ),
    "section5.1/probe": Row("SFPN, auxiliary FCN", {"mIoU": 44.35}, R50, SFPN, "identity", PROBE),
    "section5.1/probe_stop": Row(
        "SFPN, auxiliary FCN whose gradient stops", {"mIoU": 40.04}, R50, SFPN, "identity", PROBE_STOP
    ),
    "section5.2/no_stop_gradients": Row(
        "SFPN, Identity, full, no stop-gradient", {"mIoU": 48.50}, R50, SFPN, "identity", UNSTOPPED
    ),
}


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config.

    Raises:
        UserError: an unknown row or argument, or weights for a row that trains from scratch.
    """
    own = {"row": "table9/hfgd_os4", "weights": "", "setting": "", "tiny": False, "without_data": False}
    args = configuration.parse_arguments(arguments, **own)
    row = find(args.row)
    if args.weights and not row.pretrained:
        raise UserError(f"configs/paper.py:{args.row},weights={args.weights}: this row trains from scratch")
    config = configuration.default()
    configuration.set_backbone(config, row.backbone)
    config.model.backbone.weights = args.weights
    config.model.update_from_flattened_dict({**row.upsampler, "context": row.context, **row.hfgm})
    # As the public code has them, like the divisor and the rate below.
    config.model.update(
        {"context_attention_bias": True, "attention_start": 1.0, "attention_equal_start": True}
    )
    config.loss.divisor = "all"
    if row.backbone == CONVNEXT:
        config.model.backbone.drop_path = 0.3
    config.eval.branch = "probe" if config.model.guidance.probe else "prediction"
    _set(config, args.setting or row.setting)
    data = row.data
    config.data.update({"dataset": data.name, "num_classes": data.num_classes, "crop": data.crop})
    config.data.eval_split = data.eval_split
    config.train.steps = row.steps or USUAL_STEPS[row.backbone]
    config.train.batch_size = row.batch_size
    return recipe.finish(config, args)


def find(name: str) -> Row:
    """The row of this name. Raises UserError, which names the table's rows or what comes close."""
    if name in ROWS:
        return ROWS[name]
    table = name.partition("/")[0]
    near = [row for row in ROWS if row.startswith(f"{table}/")]
    near = near or difflib.get_close_matches(name, ROWS, 5, 0.4)
    says = f"one of {', '.join(near)}" if near else "python -m hfgd_jax.tools.paper lists them"
    raise UserError(f"configs/paper.py:{name}: unknown row; {says}")


def command(name: str) -> str:
    """The command that trains a row; weight files stand where it is started."""
    row = find(name)
    file = WEIGHTS.get(row.setting, WEIGHTS[row.backbone])
    weights = f",weights={file}" if row.pretrained else ""
    return f"python -m hfgd_jax.main --config configs/paper.py:{name}{weights} --workdir {_workdir(name)}"


def mf_command(name: str) -> str:
    """The command that scores a trained row MF; what training itself scores at its end is SS."""
    scales = ",".join(map(str, MF_SCALES))
    return (
        f"python -m hfgd_jax.main --workdir {_workdir(name)} --mode eval "
        f"--config.eval.scales='({scales})' --config.eval.flip=True"
    )


def _workdir(name: str) -> str:
    return f"runs/{name.replace('/', '_')}"


def _set(config: ConfigDict, setting: str) -> None:
    if setting not in SETTINGS:
        raise UserError(f"configs/paper.py:setting={setting}: unknown; one of {', '.join(SETTINGS)}")
    if setting == "plain":
        configuration.set_plain(config)
        return
    config.data.photometric = "public"
    if setting == "stronger":
        config.loss.update(STRONGER)
