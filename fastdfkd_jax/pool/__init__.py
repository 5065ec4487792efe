"""D', the pool of images that the student learns from: on the device, on disk, with soft labels, or for one round."""
