"""Where the codec's parts lie below the work folder."""

CODEC, FLOW, WAVEFORM, TUNED, VOCODER, CODES = "codec", "flow", "waveform", "tuned", "vocoder", "codes"
