"""Which part of a class's pseudo-masks is the object and which is what comes with it (Jo et al., ICCV 2023, section 3).

Rails come with trains, but they are background elsewhere. Each class's region of an image is split in two by the
features of its pixels; the parts that are far from the background of all images are the object.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = 255


def reduce_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The most frequent class of each cell of a coarser grid; 255 where a cell has none.

    Args:
        mask: [H, W] uint8, 255 = ignore.
        size: h, w of the grid.

    Returns:
        [h, w] uint8.
    """
    numbers = mask.unique()
    numbers = numbers[numbers != IGNORE_INDEX]
    if not len(numbers):
        return mask.new_full(size, IGNORE_INDEX)
    shares = functional.adaptive_avg_pool2d((mask == numbers[:, None, None]).float(), size)
    most, place = shares.max(0)
    return torch.where(most > 0, numbers[place], IGNORE_INDEX)


def image_centroids(
    features: Tensor,
    mask: Tensor,
    classes: Collection[int],
    background: int,
    *,
    foreground_clusters: int = 2,
    background_clusters: int = 2,
    seed: int = 0,
) -> dict[int, Tensor]:
    """K-means centroids of the pixels of each class and of the background, on vectors of length 1.

    Args:
        features: [D, h, w] float.
        mask: [h, w] uint8, the pseudo-mask on the features' grid.
        classes: the object classes in the image.
        background: its number.
        foreground_clusters: K_fg.
        background_clusters: K_bg.
        seed: of K-means.

    Returns:
        class -> [k, D]; a region of fewer pixels than clusters gives its mean, an empty one nothing.
    """
    vectors = functional.normalize(features.flatten(1).T, dim=1)
    found = {}
    for number in (background, *classes):
        region = vectors[(mask == number).flatten()]
        clusters = background_clusters if number == background else foreground_clusters
        if len(region):
            found[number] = _centroids(region, clusters, seed)
    return found


def _centroids(vectors: Tensor, clusters: int, seed: int) -> Tensor:
    if clusters == 1 or len(vectors) < clusters:
        return vectors.mean(0, keepdim=True)
    with warnings.catch_warnings():
        # Where all vectors are the same, so are the centroids.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(clusters, n_init=3, random_state=seed).fit(vectors.cpu().numpy())
    return torch.from_numpy(fitted.cluster_centers_).to(vectors)


def background_distance(centroids: Tensor, background: Tensor, reduce: Literal["mean", "min"] = "mean") -> Tensor:
    """How far centroids are from those of all backgrounds, by (1 - cosine) / 2 (equation 1).

    Args:
        centroids: [n, D] of one class.
        background: [m, D] of all images.
        reduce: the mean over the backgrounds (the equation), or the nearest (the paper's text).

    Returns:
        [n] in 0..1.
    """
    own, theirs = functional.normalize(centroids, dim=1), functional.normalize(background, dim=1)
    if reduce == "mean":
        # The mean of cosines is the cosine with the mean, so that no matrix of all pairs is needed.
        return (1 - own @ theirs.mean(0)) / 2
    nearest = [part @ theirs.T for part in own.split(1024)]
    return (1 - torch.cat([part.amax(1) for part in nearest])) / 2


def debiased_centroids(
    foreground: Mapping[int, Tensor], background: Tensor, kept: float = 0.4, reduce: Literal["mean", "min"] = "mean"
) -> dict[int, Tensor]:
    """The mean of each class's centroids that are farthest from the background.

    Args:
        foreground: class -> [n, D] centroids of all images of the class.
        background: [m, D] centroids of the background of all images.
        kept: the share of a class's centroids that is averaged, rounded up; alpha in the paper.
        reduce: see `background_distance`.

    Returns:
        class -> [D].
    """
    debiased = {}
    for number, centroids in foreground.items():
        distance = background_distance(centroids, background, reduce)
        count = max(1, -int(-len(centroids) * kept // 1))
        debiased[number] = centroids[distance.topk(count).indices].mean(0)
    return debiased


def target_similarity(features: Tensor, centroids: Tensor) -> Tensor:
    """ReLU of the highest cosine with any debiased centroid of the image's classes.

    Args:
        features: [D, h, w].
        centroids: [n, D], at least one.

    Returns:
        [h, w] in 0..1.
    """
    cosine = torch.einsum("dhw,nd->nhw", functional.normalize(features, dim=0), functional.normalize(centroids, dim=1))
    return cosine.amax(0).clamp(min=0)
