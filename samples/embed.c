/* The native speech head from C: a tiny random head, a prompt, some groups, the time of each.
 *
 *     cmake -S csrc -B build/csrc && cmake --build build/csrc
 *     cc -std=c99 -Icsrc/include samples/embed.c -Lbuild/csrc -ledge_sdk -Wl,-rpath,build/csrc -o build/embed && build/embed
 */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "edge_sdk.h"

enum { G = 5, HIDDEN = 64, WIDTH = 64, LAYERS = 2, HEADS = 4, KV_HEADS = 2, DIM = 16, FFN = 128, CODES = 100, BOS = 99 };
enum { PROMPT = 3, GROUPS = 4 };

static uint32_t state = 1;

/* Numbers in [low, high), the same at every run. A real program maps its bundle's weights instead. */
static float *numbers(size_t count, float low, float high) {
  float *out = malloc(count * sizeof *out);
  if (!out) exit(1);
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    out[i] = low + (high - low) * (float)(state >> 8) / 16777216.0f;
  }
  return out;
}

static edge_sdk_matrix matrix(int32_t rows, int32_t cols) {
  edge_sdk_matrix m = {0};
  m.data = numbers((size_t)rows * (size_t)cols, -0.3f, 0.3f);
  m.dtype = EDGE_SDK_FLOAT32;
  m.rows = rows;
  m.cols = cols;
  return m;
}

static void check(edge_sdk_status status) {
  if (status == EDGE_SDK_OK) return;
  fprintf(stderr, "embed: %s\n", edge_sdk_last_error());
  exit(1);
}

static edge_sdk_head *make_head(void) {
  const edge_sdk_head_shape shape = {G, HIDDEN, WIDTH, LAYERS, HEADS, KV_HEADS, DIM, FFN, CODES, BOS, 1e-6f};
  static edge_sdk_head_layer layers[LAYERS];
  edge_sdk_head_weights weights = {matrix(G * WIDTH, HIDDEN), numbers(G * WIDTH, 0, 0), matrix(CODES, WIDTH),
                                   matrix(CODES, WIDTH), numbers(WIDTH, 1, 1), layers};
  edge_sdk_head *head = NULL;
  for (int i = 0; i < LAYERS; ++i) {
    const edge_sdk_head_layer layer = {numbers(WIDTH, 1, 1), numbers(WIDTH, 1, 1), numbers(DIM, 1, 1), numbers(DIM, 1, 1),
                                       matrix(HEADS * DIM, WIDTH), matrix(KV_HEADS * DIM, WIDTH),
                                       matrix(KV_HEADS * DIM, WIDTH), matrix(WIDTH, HEADS * DIM), matrix(FFN, WIDTH),
                                       matrix(FFN, WIDTH), matrix(WIDTH, FFN)};
    layers[i] = layer;
  }
  check(edge_sdk_head_create(&shape, &weights, 2, &head));
  return head;
}

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

int main(void) {
  edge_sdk_head *head = make_head();
  edge_sdk_cache *cache = NULL;
  edge_sdk_sampling sampling = {1, 0.8f, 0.95f, 0, 1.2f, 7, 0, 0};
  uint8_t seen[CODES] = {0};
  int64_t ids[G] = {0}, last = BOS;
  check(edge_sdk_cache_create(head, (PROMPT + GROUPS) * G, EDGE_SDK_INT8, 1e6, &cache));
  check(edge_sdk_head_prefill(head, cache, numbers(PROMPT * HIDDEN, -1, 1), PROMPT));
  printf("%s, cache of %zu bytes\n", edge_sdk_isa(), edge_sdk_cache_bytes(cache));
  for (uint32_t group = 0; group < GROUPS; ++group) {
    const float *hidden = numbers(HIDDEN, -1, 1); /* the backbone's, at this position */
    const double start = milliseconds();
    sampling.step = group;
    check(edge_sdk_head_group(head, cache, hidden, last, seen, &sampling, ids, NULL));
    printf("group %u, %.2f ms:", group, milliseconds() - start);
    for (int i = 0; i < G; ++i) {
      seen[ids[i]] = 1;
      printf(" %d", (int)ids[i]);
    }
    printf("\n");
    last = ids[G - 1];
  }
  edge_sdk_cache_free(cache);
  edge_sdk_head_free(head);
  return 0;
}
