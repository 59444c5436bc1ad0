"""Synthetic scenes: a small teaching set in which every kind of label is known exactly.

Eight classes of objects, told apart by outline and surface pattern and never by color, lie over and beside one another
on textured grounds among clutter that shares their colors. Some classes are common and some rare (`FREQUENCIES`).

Other kinds of scenes are simpler, for experiments of minutes: patches of four patterns (`patch_scene`), shapes whose
class a distant stripe tells (`stripe_scene`), bodies whose class a small head tells (`head_scene`), shapes of which one
class always stands on rails (`rail_scene`), and shapes of which some classes are rare (`rare_scene`).
"""

from labelwise.datasets.shapes.heads import HEAD_CLASSES, head_scene
from labelwise.datasets.shapes.labels import CONTOUR_SIZE, class_mask
from labelwise.datasets.shapes.noise import with_noise
from labelwise.datasets.shapes.options import Noise, ShapesOptions
from labelwise.datasets.shapes.patches import PATCH_CLASSES, patch_scene
from labelwise.datasets.shapes.rails import RAIL_CLASSES, rail_scene
from labelwise.datasets.shapes.rare import RARE_CLASSES, RARE_FREQUENCIES, rare_scene
from labelwise.datasets.shapes.scene import CLASSES, FREQUENCIES, scene
from labelwise.datasets.shapes.stripes import STRIPE_CLASSES, stripe_scene
from labelwise.datasets.shapes.write import OPTIONS_FILE, TRUE_MASKS, write_shapes

__all__ = [
    "CLASSES",
    "CONTOUR_SIZE",
    "FREQUENCIES",
    "HEAD_CLASSES",
    "OPTIONS_FILE",
    "PATCH_CLASSES",
    "RAIL_CLASSES",
    "RARE_CLASSES",
    "RARE_FREQUENCIES",
    "STRIPE_CLASSES",
    "TRUE_MASKS",
    "Noise",
    "ShapesOptions",
    "class_mask",
    "head_scene",
    "patch_scene",
    "rail_scene",
    "rare_scene",
    "scene",
    "stripe_scene",
    "with_noise",
    "write_shapes",
]
