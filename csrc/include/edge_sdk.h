/* edge_sdk: the speech head and token grouping for programs in C.
 *
 *   edge_sdk_head* head = NULL;
 *   edge_sdk_cache* cache = NULL;
 *   if (edge_sdk_head_create(&shape, &weights, 2, &head) != EDGE_SDK_OK) puts(edge_sdk_last_error());
 *   edge_sdk_cache_create(head, 10240, EDGE_SDK_INT8, 1e6, &cache);
 *   edge_sdk_head_prefill(head, cache, prompt_rows, prompt_positions);
 *   edge_sdk_head_group(head, cache, hidden, last_id, seen, &sampling, ids, NULL);   // five ids, 200 ms of speech
 *   edge_sdk_cache_free(cache);
 *   edge_sdk_head_free(head);
 *
 * samples/embed.c is a whole program.
 *
 * Ownership. Handles belong to the caller, who frees each once; a cache must be freed before its head. What `weights`
 * points to is used in place (map the bundle's file) and must outlive the head; the structs themselves are copied.
 *
 * Threads. A head may serve several threads, its calls then wait for each other. A cache is for one thread at a time.
 *
 * Errors. Functions return a status; edge_sdk_last_error() has the words, of this thread's last failure. Nothing is
 * thrown, nothing is printed. After a refused call head and cache are as they were before it; what it was to fill (ids,
 * logits, rows) may hold anything.
 */
#ifndef EDGE_SDK_H_
#define EDGE_SDK_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EDGE_SDK_API __declspec(dllexport)
#else
#define EDGE_SDK_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define EDGE_SDK_ABI_VERSION 1

typedef enum edge_sdk_status {
  EDGE_SDK_OK = 0,
  EDGE_SDK_INVALID_ARGUMENT = 1,
  EDGE_SDK_NOT_FINITE = 2, /* NaN or infinity in an input, or in the scores */
  EDGE_SDK_CACHE_FULL = 3,
  EDGE_SDK_NO_CHOICE = 4, /* no id can be picked */
  EDGE_SDK_DEVICE = 5,
  EDGE_SDK_INTERNAL = 6
} edge_sdk_status;

typedef enum edge_sdk_dtype { EDGE_SDK_FLOAT32 = 0, EDGE_SDK_FLOAT16 = 1, EDGE_SDK_INT8 = 2, EDGE_SDK_INT4 = 3 } edge_sdk_dtype;

/* A weight matrix [rows, cols]; row r makes output r. INT8 and INT4 rows are cut into blocks of `block` values with one
 * scale each, the last block padded with the zero point:
 *   INT8: uint8 [rows, blocks, block], value = (q - 128) * scale; block a multiple of 32
 *   INT4: uint8 [rows, blocks, block / 2], even elements in the low nibbles, value = (q - 8) * scale; block 32 or a
 *         multiple of 64
 *   scales: [rows, blocks], of `scale_dtype` FLOAT32 or FLOAT16
 * FLOAT32 and FLOAT16: [rows, cols]; scales and block are ignored. */
typedef struct edge_sdk_matrix {
  const void* data;
  const void* scales;
  int32_t dtype;       /* edge_sdk_dtype */
  int32_t scale_dtype; /* edge_sdk_dtype */
  int32_t rows;
  int32_t cols;
  int32_t block;
} edge_sdk_matrix;

typedef struct edge_sdk_head_shape {
  int32_t group_size;   /* ids of one group, G; at most 64 */
  int32_t hidden;       /* width of the backbone */
  int32_t width;        /* width of the head */
  int32_t layers;
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t intermediate;
  int32_t codes;        /* codebook rows, specials included */
  int32_t bos;
  float eps;            /* of the norms */
} edge_sdk_head_shape;

typedef struct edge_sdk_head_layer {
  const float* input_norm; /* [width] */
  const float* post_norm;  /* [width] */
  const float* q_norm;     /* [head_dim] */
  const float* k_norm;     /* [head_dim] */
  edge_sdk_matrix q, k, v, o, gate, up, down;
} edge_sdk_head_layer;

typedef struct edge_sdk_head_weights {
  edge_sdk_matrix input;        /* [group_size * width, hidden] */
  const float* input_bias;      /* [group_size * width] */
  edge_sdk_matrix input_table;  /* [codes, width] */
  edge_sdk_matrix output_table; /* [codes, width] */
  const float* final_norm;      /* [width] */
  const edge_sdk_head_layer* layers;
} edge_sdk_head_weights;

/* How an id is picked: repetition penalty; then, with do_sample, temperature, top-k (0: off), top-p and a draw. The
 * draw comes from Philox4x32-10 with key `seed` and counter (turn, step, 0..G-1, 0): the same everywhere. */
typedef struct edge_sdk_sampling {
  int32_t do_sample;
  float temperature;
  float top_p;
  int32_t top_k;
  float repetition_penalty;
  uint64_t seed;
  uint32_t turn;
  uint32_t step;
} edge_sdk_sampling;

typedef struct edge_sdk_head edge_sdk_head;
typedef struct edge_sdk_cache edge_sdk_cache;

/* EDGE_SDK_ABI_VERSION the library was built with. */
EDGE_SDK_API int32_t edge_sdk_abi_version(void);
/* The instruction set its kernels use here: "avx512", "avx2", "neon" or "plain". */
EDGE_SDK_API const char* edge_sdk_isa(void);
/* Words for this thread's last failure; "" before any. Valid until the thread's next failure. */
EDGE_SDK_API const char* edge_sdk_last_error(void);

/* threads: how many a call uses, 1 to 256; they are the head's own and sleep between calls. */
EDGE_SDK_API edge_sdk_status edge_sdk_head_create(const edge_sdk_head_shape* shape, const edge_sdk_head_weights* weights,
                                                  int32_t threads, edge_sdk_head** head);
EDGE_SDK_API void edge_sdk_head_free(edge_sdk_head* head);

/* The KV cache of one conversation: `capacity` positions (G for each of the backbone's), keys and values of `dtype`
 * FLOAT32, FLOAT16 or INT8. */
EDGE_SDK_API edge_sdk_status edge_sdk_cache_create(const edge_sdk_head* head, int32_t capacity, int32_t dtype,
                                                   double rope_theta, edge_sdk_cache** cache);
EDGE_SDK_API void edge_sdk_cache_free(edge_sdk_cache* cache);
EDGE_SDK_API int32_t edge_sdk_cache_length(const edge_sdk_cache* cache);
/* Memory of keys, values and their scales. */
EDGE_SDK_API size_t edge_sdk_cache_bytes(const edge_sdk_cache* cache);
/* Forget every position from `length` on. */
EDGE_SDK_API edge_sdk_status edge_sdk_cache_trim(edge_sdk_cache* cache, int32_t length);

/* Append backbone positions, head_input [count, hidden]: each with BOS as the id before it, as upstream prefills. */
EDGE_SDK_API edge_sdk_status edge_sdk_head_prefill(edge_sdk_head* head, edge_sdk_cache* cache, const float* head_input,
                                                   int32_t count);
/* Make one group.
 *   head_input [hidden]; last_id: the pick before (BOS at the start)
 *   seen [codes]: nonzero for ids the repetition penalty acts on (the group's own picks join a copy)
 *   ids [group_size]: out.  logits [group_size, codes]: out, before any penalty; may be NULL */
EDGE_SDK_API edge_sdk_status edge_sdk_head_group(edge_sdk_head* head, edge_sdk_cache* cache, const float* head_input,
                                                 int64_t last_id, const uint8_t* seen, const edge_sdk_sampling* sampling,
                                                 int64_t* ids, float* logits);

/* G speech ids -> one backbone row: out [count, cols] = sum of table rows ids [count, group_size]; where text
 * [count, cols] is not NULL, the mean of that and text. */
EDGE_SDK_API edge_sdk_status edge_sdk_group_tokens(const edge_sdk_matrix* table, const int64_t* ids, int32_t count,
                                                   int32_t group_size, const float* text, float* out);
/* Encoder rows [rows, width] -> out [ceil(rows / group_size), width]: means over groups, missing rows count as zeros. */
EDGE_SDK_API edge_sdk_status edge_sdk_group_rows(const float* rows_in, int32_t rows, int32_t width, int32_t group_size,
                                                 float* out);

#ifdef __cplusplus
}
#endif

#endif /* EDGE_SDK_H_ */
