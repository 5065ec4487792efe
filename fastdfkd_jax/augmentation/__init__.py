"""How images are shown: random crops, mirroring, mixing, and the teacher's normalisation."""
