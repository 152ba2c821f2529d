"""The embedded tabletop: a gripper seen from above picks coloured shapes and puts them on plates.

World coordinates are metres on a 1 x 1 table: x to the right, y away from the viewer. Images are 60 x 60 RGB.
"""
