"""What the teaching notebooks compute: small experiments with a known truth, made of the kit's own parts."""
