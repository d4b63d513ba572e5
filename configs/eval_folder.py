"""Data of your own: a folder of images and its annotations. Give the paths here, in a copy, or on the command line:

    fcclip evaluate --config configs/eval_folder.py --checkpoint models/fcclip_large --labels words.txt \\
        --config.folder.images photos --config.folder.semantic maps

One or more of: label maps under the images' names (`folder.semantic`; they hold the label file's ids), panoptic PNGs
and their COCO JSON (`folder.panoptic` and `folder.annotations`), a COCO instance JSON (`folder.instances`).
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    config = evaluation_config("folder")
    config.labels = ""
    config.folder.images = ""
    config.folder.semantic = ""
    config.folder.panoptic = ""
    config.folder.annotations = ""
    config.folder.instances = ""
    return config
