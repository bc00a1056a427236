"""The codecs that arlat-vae adds: `build_codec("vae=FOLDER")`."""
