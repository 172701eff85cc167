"""A Realtime client for `edge-sdk serve`, in OpenAI's own library: a question as WAV in, the answer as WAV out.

    edge-sdk serve 8b.bundle &
    pip install 'openai[realtime]'
    python samples/realtime_client.py question.wav answer.wav [http://127.0.0.1:8321/v1]

The question is sent at the pace of a microphone. The server hears where it ends, and answers by itself.
"""

import asyncio
import base64
import os
import sys
import time

import numpy as np
import openai
import soundfile
import soxr

RATE = 24000  # of sound in either direction: 16 bit, mono
PIECE_S = 0.04


async def main(question: str, answer: str, url: str) -> None:
    client = openai.AsyncOpenAI(
        base_url=url,
        websocket_base_url=url.replace("http", "ws", 1),
        api_key=os.environ.get("EDGE_SDK_TOKEN", "none"),
    )
    async with client.realtime.connect(model="edge_sdk") as connection:
        await connection.session.update(
            session={
                "type": "realtime",
                "instructions": "You are asked to generate both text and speech tokens at the same time.",
                "audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 500}}},
            }
        )
        speaking = asyncio.create_task(speak(connection, read(question)))
        pcm = await listen(connection)
        speaking.cancel()
    soundfile.write(answer, np.frombuffer(pcm, "<i2"), RATE)
    print(f"{len(pcm) / 2 / RATE:.2f} s of sound in {answer}")


def read(path: str) -> np.ndarray:
    """A recording and a second of silence behind it, int16 at 24 kHz."""
    pcm, rate = soundfile.read(path, dtype="float32", always_2d=True)
    pcm = soxr.resample(pcm.mean(axis=1), rate, RATE)
    pcm = np.concatenate([pcm, np.zeros(RATE, np.float32)])
    return (pcm.clip(-1, 1) * 32767).astype("<i2")


async def speak(connection, pcm: np.ndarray) -> None:
    size, began = int(RATE * PIECE_S), time.monotonic()
    for n, at in enumerate(range(0, len(pcm), size)):
        await asyncio.sleep(max(0, began + n * PIECE_S - time.monotonic()))
        piece = base64.b64encode(pcm[at : at + size].tobytes()).decode()
        await connection.input_audio_buffer.append(audio=piece)


async def listen(connection) -> bytes:
    pcm, stopped_at = b"", 0.0
    async for event in connection:
        if event.type == "input_audio_buffer.speech_started":
            pcm = b""  # whoever plays it stops now, and says with conversation.item.truncate what was heard
            print("[you speak]")
        elif event.type == "input_audio_buffer.speech_stopped":
            stopped_at = time.monotonic()
        elif event.type == "response.output_audio_transcript.delta":
            print(event.delta, end="", flush=True)
        elif event.type == "response.output_audio.delta":
            if not pcm:
                print(f"[first sound {1000 * (time.monotonic() - stopped_at):.0f} ms after the end was heard]")
            pcm += base64.b64decode(event.delta)
        elif event.type == "response.done" and event.response.status != "cancelled":
            print(f"\n[{event.response.status}]")
            return pcm
        elif event.type == "error":
            raise SystemExit(f"the server says: {event.error.message}")
    return pcm


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8321/v1"))
