"""Frame numbers: frame i of a video is the i-th that decoding the whole file yields.

May import: ffmpeg, manifest.
`packets` and `addressing` serve `index`; `seek` finds the frames of a clip when it is decoded.
"""
