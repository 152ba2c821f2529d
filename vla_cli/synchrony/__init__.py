"""From many clocks and many conventions to one: `synchronise` is the way in, the rest is what it is made of.

clocks       the ticks that streams share, and gaps, jumps and steps backwards
resample     a stream at other ticks, by what its dimensions are
dimensions   which of them are a gripper, which a rotation
rotations    quaternions, axis-angle, Euler angles, and the arithmetic of them
actions      absolute, changes, or the next state
stillness    whether anything moves, at any rate
latency      how late the pictures are, estimated from motion
"""
