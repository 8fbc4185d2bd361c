"""Explain what the two paths of ACmix do in a network: for one image, and in their weights.

- `explain`: everything below for one image, as an `Explanation`
- `write_explanation`: an `Explanation` as pictures and one HTML page; `Subject` holds the names that it shows
- `contributions`: the parts of a class score by path, layer and position; they sum to the score
- `pixel_attention`: where one pixel attends to, in one layer
- `effective_kernels`: the kernels of the convolution paths
- `grad_cam`: the standard picture, as a baseline
"""

from acmix_zoo.explain.contributions import contributions
from acmix_zoo.explain.effective_kernels import effective_kernels
from acmix_zoo.explain.explanation import Explanation, explain
from acmix_zoo.explain.explanation_folder import write_explanation
from acmix_zoo.explain.grad_cam import grad_cam
from acmix_zoo.explain.page import Subject
from acmix_zoo.explain.pixel_attention import pixel_attention

__all__ = [
    "Explanation",
    "Subject",
    "contributions",
    "effective_kernels",
    "explain",
    "grad_cam",
    "pixel_attention",
    "write_explanation",
]
