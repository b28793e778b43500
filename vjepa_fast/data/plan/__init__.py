"""Which video, frames, crop and flip a sample id shows: a pure function of (seed, sample id).

May import: manifest, masks.philox, errors. Opens no file.
Reading time stamps and pixels belongs to `decode`; replacing bad clips to `data.bad_clips`.
"""
