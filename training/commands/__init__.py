"""The sub-commands of `pose_reloc`: thin functions over the modules of `training`."""
