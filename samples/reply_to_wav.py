"""A recording in, an answer out.

python samples/reply_to_wav.py question.wav answer.wav [BUNDLE]
"""

import sys

import edge_sdk

question, answer = sys.argv[1:3]
bundle = sys.argv[3] if len(sys.argv) > 3 else None

with edge_sdk.Chat(bundle) as chat:
    reply = chat.send(audio=question)
    print(reply.text)
    reply.save(answer)
    print(f"first sound after {reply.timings.ttfa_ms:.0f} ms, {reply.timings.audio_s:.1f} s of sound in all")
