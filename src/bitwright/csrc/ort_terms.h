// The sum of a weight's terms, each with its own scale. Inputs are listed in ort_ops.cpp.
#pragma once
#include "ort_tensors.h"

namespace {

// float [N, H, W, O] of the terms' integers side by side, [N, H, W, T * O]: the products are added in order, then `add`.
struct Terms : Kernel {
  Array<float> scale, add;
  int64_t outputs, terms;

  BW_COLD ort::Status* create(const Node& node) override {
    View table;
    BW_TRY(node.constant(1, "scale", &scale, &table));
    if (table.rank != 2 || table.dims[0] < 1 || table.dims[1] < 1) return node.fail("scale must be [terms, O]");
    terms = table.dims[0], outputs = table.dims[1];
    return node.constant_of(2, "add", outputs, &add);
  }

  ort::Status* run(const Call& call) const override {
    View sums;
    BW_TRY(call.image(0, "sums", sizeof(int32_t), &sums));
    if (sums.dims[3] != terms * outputs)
      return call.fail("sums are for %lld values a pixel, scale for %lld", (long long)sums.dims[3], (long long)(terms * outputs));
    void* out;
    BW_TRY(call.image_out(0, sums.dims[0], sums.dims[1], sums.dims[2], outputs, &out));
    const int64_t pixels = sums.dims[0] * sums.dims[1] * sums.dims[2];
    const Threads threads(call, 30.0 * (double)sums.count);
    const int64_t share = items_per_task(threads.count(), pixels, 1, pixels);
    for_tasks(threads.count(), (pixels + share - 1) / share, [&](int64_t task) {
      const int64_t end = (task + 1) * share < pixels ? (task + 1) * share : pixels;
      for (int64_t p = task * share; p < end; p++) pixel((const int32_t*)sums.data + p * terms * outputs, (float*)out + p * outputs);
    });
    return nullptr;
  }

  void pixel(const int32_t* sums, float* y) const {
    for (int64_t o = 0; o < outputs; o++) y[o] = (float)sums[o] * scale.data[o];
    for (int64_t t = 1; t < terms; t++)
      for (int64_t o = 0; o < outputs; o++) y[o] += (float)sums[t * outputs + o] * scale.data[t * outputs + o];
    for (int64_t o = 0; o < outputs; o++) y[o] += add.data[o];
  }
};

}  // namespace
