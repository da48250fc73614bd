"""The built-in room: a furnished room drawn, lit and rendered with numpy and OpenCV alone.

textures, pictures, scenery       what surfaces look like
builder, materials                boxes, prisms and panels made of them
layout, living, kitchen           the room and its furniture
light                             soft shadows and bounced light
render                            exact colour and depth of textured quads
room                              Room(seed).render(world_T_camera, camera, light)
walks                             camera poses of the training and test walks
"""
