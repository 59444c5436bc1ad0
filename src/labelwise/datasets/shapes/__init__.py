"""Synthetic scenes: a small teaching set in which every kind of label is known exactly.

Eight classes of objects, told apart by outline and surface pattern and never by color, lie over and beside one another
on textured grounds among clutter that shares their colors. Some classes are common and some rare (`FREQUENCIES`).
"""

from labelwise.datasets.shapes.noise import with_noise
from labelwise.datasets.shapes.options import Noise, ShapesOptions
from labelwise.datasets.shapes.scene import CLASSES, CONTOUR_SIZE, FREQUENCIES, class_mask, scene
from labelwise.datasets.shapes.write import OPTIONS_FILE, TRUE_MASKS, write_shapes

__all__ = [
    "CLASSES",
    "CONTOUR_SIZE",
    "FREQUENCIES",
    "OPTIONS_FILE",
    "TRUE_MASKS",
    "Noise",
    "ShapesOptions",
    "class_mask",
    "scene",
    "with_noise",
    "write_shapes",
]
