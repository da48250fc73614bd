"""`pose_reloc serve`: a local page that answers a picture with the place where it was taken."""
