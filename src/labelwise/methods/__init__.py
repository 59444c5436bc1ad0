"""The plain listing of the methods: name -> "module:Class"."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from labelwise.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from labelwise.method import Method

METHODS: dict[str, str] = {
    "adele": "labelwise.methods.noisy_masks.adele:ADELE",
    "bas": "labelwise.methods.tags.bas:BAS",
    "cam": "labelwise.methods.tags.cam:Cam",
    "corrmatch": "labelwise.methods.few_masks.corrmatch:CorrMatch",
    "cps": "labelwise.methods.few_masks.cps:CPS",
    "cw_bass": "labelwise.methods.few_masks.cw_bass:CWBASS",
    "deeplab_v1": "labelwise.methods.masks.deeplab_v1:DeepLabV1",
    "deeplab_v2": "labelwise.methods.masks.deeplab_v2:DeepLabV2",
    "deeplab_v3": "labelwise.methods.masks.deeplab_v3:DeepLabV3Method",
    "deeplab_v3plus": "labelwise.methods.masks.deeplab_v3plus:DeepLabV3PlusMethod",
    "dssn": "labelwise.methods.few_masks.dssn:DSSN",
    "ese_seg": "labelwise.methods.instances.ese_seg:ESESeg",
    "fast_rcnn": "labelwise.methods.boxes.fast_rcnn:FastRCNN",
    "faster_rcnn": "labelwise.methods.boxes.faster_rcnn:FasterRCNN",
    "fcn": "labelwise.methods.masks.fcn:FCN",
    "fd_mobilenet": "labelwise.methods.tags.fd_mobilenet:FDMobileNet",
    "fixmatch": "labelwise.methods.few_masks.fixmatch:FixMatch",
    "irn": "labelwise.methods.tags.irn:IRN",
    "mars": "labelwise.methods.tags.mars:MARS",
    "mgd": "labelwise.methods.few_masks.mgd:MGD",
    "p2at": "labelwise.methods.masks.p2at:P2ATMethod",
    "pixelpick": "labelwise.methods.points.pixelpick:PixelPick",
    "psa": "labelwise.methods.tags.psa:PSA",
    "rcnn": "labelwise.methods.boxes.rcnn:RCNN",
    "rcnn_regions": "labelwise.methods.masks.rcnn_regions:RCNNRegions",
    "supervised": "labelwise.methods.masks.supervised:Supervised",
    "w_ood": "labelwise.methods.tags.w_ood:WOoD",
}


def load(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: no method has that name.
    """
    if name not in METHODS:
        raise UserError(f"unknown method '{name}'{did_you_mean(name, METHODS)} (`labelwise methods` lists them)")
    module, attribute = METHODS[name].split(":")
    method: type[Method] = getattr(import_module(module), attribute)
    return method
