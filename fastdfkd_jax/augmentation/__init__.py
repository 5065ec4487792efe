"""Image augmentation: random crops, mirroring, mixing, and the teacher's normalisation."""
