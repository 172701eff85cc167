"""Where the codec's parts lie below the work folder."""

CODEC, FLOW, WAVEFORM, VOCODER, CODES = "codec", "flow", "waveform", "vocoder", "codes"
