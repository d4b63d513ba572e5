"""Checkpoints of other programs to model folders, and back; run as `python -m convert.NAME --help`.

    fcclip      a released FC-CLIP checkpoint -> a model folder
    to_fcclip   a model folder -> a checkpoint that FC-CLIP reads
    open_clip   open_clip's weights -> a model folder that holds the frozen towers alone
    download    open_clip's weights from the Hugging Face hub, converted

Nothing here imports torch, and no pickle is ever run: `unpickler` builds arrays and plain containers, nothing else.
"""
