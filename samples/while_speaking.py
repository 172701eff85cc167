"""Feed a question while it is spoken: it is encoded and prefilled meanwhile, so the answer does not wait for it.

    python samples/while_speaking.py question.wav [BUNDLE]

The recording is fed in real time, as a microphone would. Compare the time to first audio with that of `send`.
"""

import sys
import time

import soundfile

import edge_sdk

pcm, rate = soundfile.read(sys.argv[1], dtype="float32")
config = edge_sdk.GenerationConfig(max_new_tokens=30, seed=1)

with edge_sdk.Chat(sys.argv[2] if len(sys.argv) > 2 else None, generation=config) as chat:
    chat.send(text="Hello.")
    chat.reset()
    at_once = chat.send(audio=pcm, sample_rate=rate)
    chat.reset()

    turn = chat.begin_turn(sample_rate=rate)
    block = rate // 10
    for at in range(0, len(pcm), block):
        turn.feed(pcm[at : at + block])
        time.sleep(0.1)
    with turn.finish() as events:
        for event in events:
            if isinstance(event, edge_sdk.AudioChunk):
                print(f"sound from {event.start_s:.2f} s, {len(event.pcm)} samples")
    streamed = events.reply

print(f"same ids: {streamed.speech_ids == at_once.speech_ids}")
for name, reply in (("sent at once", at_once), ("fed while spoken", streamed)):
    t = reply.timings
    print(f"{name}: {t.reused_tokens} of {t.prompt_tokens} positions ready, first token after {t.ttft_ms:.0f} ms")
