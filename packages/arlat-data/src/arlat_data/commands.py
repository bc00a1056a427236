"""The commands that arlat-data adds: sub-command -> (help line, "module:function")."""

COMMANDS = {
    "data": {
        "extract": ("speech to a latent store", "arlat_data.extract:main"),
        "fetch": ("download LibriSpeech", "arlat_data.fetch:main"),
        "synth": ("a synthetic store whose answers are known", "arlat_data.synth:main"),
        "pca": ("a framed PCA of the waveform, as a codec", "arlat_data.pca_command:main"),
        "readout": ("a linear readout of a store", "arlat_data.readout_command:main"),
        "surrogate": ("a surrogate of a store", "arlat_data.surrogate:main"),
        "verify": ("check a store against its manifest, and repair it", "arlat_data.verify:main"),
        "show": ("say what a store holds", "arlat_data.show:main"),
        "codecs": ("list codecs", "arlat_data.show:codecs"),
    }
}
