"""The ROS 2 side of pose_reloc: the node, its messages, TF, diagnostics and the bag player.

Only this package imports rclpy or message packages, and only where they are used: `messages` and
`transforms.TransformTree` work on any object with the fields of a message, so that bags can be read
on a machine without ROS.
"""
