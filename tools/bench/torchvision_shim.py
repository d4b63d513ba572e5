"""Makes `import torchvision` work where its compiled part does not load: a CUDA build beside a PyTorch for CPU.

open_clip, timm and transformers' Mask2Former import torchvision but need none of its kernels here; the import fails
for want of two operator schemas. Call `import_torchvision()` before the first import of any of them.
"""

_libraries = []  # schemas live as long as the object that defined them


def import_torchvision() -> None:
    """Imports torchvision, declaring the missing operators where that is what it takes.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: it fails for another reason.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
        import torchvision  # noqa: F401
