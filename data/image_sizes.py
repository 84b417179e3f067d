"""How large the images of a split are, from the headers of their files: nothing is decoded."""
from pathlib import Path

from PIL import Image

from data.voc import DataError, VOCDataset, read_ids


def image_sizes(root, split):
    """(height, width) of every image of a split, in its order.

    Raises:
        DataError: a file is missing, or no image.
    """
    sizes = []
    for image_id in read_ids(root, split):
        path = VOCDataset._image_path(Path(root), image_id)
        try:
            with Image.open(path) as img:
                sizes.append((img.height, img.width))
        except OSError as error:
            raise DataError(f"{path} is not an image that can be read: {error}") from None
    return sizes
