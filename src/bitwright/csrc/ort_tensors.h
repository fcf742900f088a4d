// Between ONNX Runtime and the core: tensors and attributes of a node as plain structs, errors as one line that names the
// operator, and the runtime's threads for the core's tasks.
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <atomic>

#include "kernels.h"
#include "ort_abi.h"
#include "parallel.h"

#define BW_TRY(expression) \
  if (ort::Status* status_ = (expression)) return status_

// What runs once, while a session is made, is to be small.
#define BW_COLD __attribute__((cold))
// So is what only talks to the runtime.
#define BW_ONCE __attribute__((noinline))

namespace {

// The runtime has already checked the element type, because an operator declares what it takes.
struct View {
  const void* data = nullptr;
  int64_t dims[8] = {}, count = 0;
  size_t rank = 0;
};

// One of several operators that a node runs one after the other (ort_run.h). Values are numbered: the inputs of the node come first.
struct Step {
  struct Attribute {
    const char* name;
    int64_t values[4];
    size_t count;
  };
  const char* op;
  const int *input_types, *output_types;  // of the operator, ended by 0
  int64_t inputs[16], outputs[2];
  Attribute attributes[16];
  size_t attribute_count;

  const Attribute* attribute(const char* name) const {
    for (size_t i = 0; i < attribute_count; i++)
      if (!strcmp(attributes[i].name, name)) return attributes + i;
    return nullptr;
  }
};

// Owned memory that starts on a cache line.
template <class T>
struct Array {
  T* data = nullptr;
  int64_t count = 0;
  Array() = default;
  Array(const Array&) = delete;
  ~Array() { free(data); }
  bool make(int64_t n) {
    void* memory = nullptr;
    free(data);
    data = posix_memalign(&memory, 64, (size_t)(n ? n : 1) * sizeof(T)) ? nullptr : (T*)memory;
    count = n;
    return data;
  }
  const T* or_null() const { return count ? data : nullptr; }
};

// What errors need: the runtime and the operator's name.
struct Place {
  const ort::Api* api;
  const char* op;

  __attribute__((format(printf, 2, 3))) ort::Status* fail(const char* format, ...) const {
    char text[640];
    const size_t used = (size_t)snprintf(text, sizeof text, "bitwright.%s: ", op);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, sizeof text - used, format, arguments);
    va_end(arguments);
    return ort::create_status(api)(ort::INVALID_ARGUMENT, text);
  }
  BW_COLD ort::Status* no_memory() const { return fail("out of memory"); }
  BW_ONCE ort::Status* core(int error) const { return error ? fail("%s", bw_last_error()) : nullptr; }

  BW_ONCE ort::Status* view(const ort::Value* value, View* to) const {
    ort::TensorInfo* info;
    BW_TRY(ort::tensor_info(api)(value, &info));
    ort::Status* status = ort::rank(api)(info, &to->rank);
    if (!status && to->rank > 8) status = fail("a tensor has %zu axes, at most 8 are possible", to->rank);
    if (!status) status = ort::dimensions(api)(info, to->dims, to->rank);
    ort::release_tensor_info(api)(info);
    if (status) return status;
    to->count = 1;
    for (size_t i = 0; i < to->rank; i++) to->count *= to->dims[i];
    void* data;
    BW_TRY(ort::tensor_data(api)(value, &data));
    to->data = data;
    return nullptr;
  }
  // Of an operator with a node of its own the runtime has checked it.
  BW_ONCE ort::Status* has_type(const ort::Value* value, int type) const {
    ort::TensorInfo* info;
    BW_TRY(ort::tensor_info(api)(value, &info));
    int found = 0;
    ort::Status* status = ort::element_type(api)(info, &found);
    ort::release_tensor_info(api)(info);
    return status || found == type ? status : fail("a tensor has elements of type %d, it needs type %d", found, type);
  }
};

// A node, or one step of a node, while its kernel is made.
struct Node : Place {
  const ort::Info* info;
  const Step* step = nullptr;
  int64_t given = 0;  // inputs of the node that has steps

  BW_COLD ort::Status* attribute(const char* name, int64_t* value) const {
    if (step) return attributes(name, value, 1);
    if (ort::Status* status = ort::attribute(api)(info, name, value)) {
      ort::release_status(api)(status);
      return fail("needs the attribute %s, an integer", name);
    }
    return nullptr;
  }
  BW_COLD ort::Status* attributes(const char* name, int64_t* values, size_t count) const {
    if (step) {
      const Step::Attribute* found = step->attribute(name);
      if (!found || found->count != count) return fail("needs the attribute %s, %zu integers", name, count);
      memcpy(values, found->values, count * sizeof *values);
      return nullptr;
    }
    size_t given = 0;
    ort::Status* status = ort::attributes(api)(info, name, nullptr, &given);
    if (!status && given == count) status = ort::attributes(api)(info, name, values, &given);
    const bool wrong = status || given != count;
    if (status) ort::release_status(api)(status);
    return wrong ? fail("needs the attribute %s, %zu integers", name, count) : nullptr;
  }
  // top, left, bottom, right
  BW_COLD ort::Status* pads(int64_t* pad_h, int64_t* pad_w) const {
    int64_t pads[4];
    BW_TRY(attributes("pads", pads, 4));
    if (pads[0] != pads[2] || pads[1] != pads[3]) return fail("pads must be the same on both sides of an axis");
    *pad_h = pads[0], *pad_w = pads[1];
    return nullptr;
  }
  // *value is null where the input is not a constant
  BW_COLD ort::Status* maybe_constant(size_t index, const ort::Value** value) const {
    int is_constant = 0;
    *value = nullptr;
    const size_t place = step ? (size_t)step->inputs[index] : index;
    if (step && step->inputs[index] >= given) return nullptr;  // what another step made
    BW_TRY(ort::constant_input(api)(info, place, &is_constant, value));
    if (!is_constant) *value = nullptr;
    return step && *value ? has_type(*value, step->input_types[index]) : nullptr;
  }
  template <class T>
  BW_COLD ort::Status* constant(size_t index, const char* name, Array<T>* to, View* view_of = nullptr) const {
    const ort::Value* value;
    View seen;
    BW_TRY(maybe_constant(index, &value));
    if (!value) return fail("%s must be an initializer that is no input of the graph", name);
    BW_TRY(view(value, &seen));
    if (!to->make(seen.count)) return no_memory();
    if (seen.count) memcpy(to->data, seen.data, (size_t)seen.count * sizeof(T));
    if (view_of) *view_of = seen;
    return nullptr;
  }
  template <class T>
  BW_COLD ort::Status* constant_of(size_t index, const char* name, int64_t count, Array<T>* to) const {
    BW_TRY(constant(index, name, to));
    if (to->count == count) return nullptr;
    return fail("%s has %lld elements, it needs %lld", name, (long long)to->count, (long long)count);
  }
  // of `count` elements or of none
  template <class T>
  BW_COLD ort::Status* constant_or_none(size_t index, const char* name, int64_t count, Array<T>* to) const {
    BW_TRY(constant(index, name, to));
    if (!to->count || to->count == count) return nullptr;
    return fail("%s has %lld elements, it needs %lld or none", name, (long long)to->count, (long long)count);
  }
  // Something like the result, or a constant 0, which says that there is none.
  BW_COLD ort::Status* residual(size_t index, bool* there) const {
    const ort::Value* value;
    View seen;
    BW_TRY(maybe_constant(index, &value));
    *there = true;
    if (!value) return nullptr;
    BW_TRY(view(value, &seen));
    if (seen.count != 1) return nullptr;
    float number;
    memcpy(&number, seen.data, sizeof number);
    if (number != 0.0f) return fail("residual must be like the result, or a constant 0");
    *there = false;
    return nullptr;
  }
  // multiply, divide, base, low, high
  BW_COLD ort::Status* grid(size_t index, bw_grid* to) const {
    Array<float> values;
    BW_TRY(constant_of(index, "grid", 5, &values));
    const float multiply = values.data[0], divide = values.data[1];
    if (multiply != 1.0f && divide != 1.0f) return fail("one of grid's multiply and divide must be 1");
    for (int i = 2; i < 5; i++) {
      const float value = values.data[i];
      if (!(value >= -255.0f && value <= 255.0f && value == (float)(int)value))
        return fail("grid's base, low and high must be whole numbers from -255 to 255");
    }
    const bool divides = divide != 1.0f;
    *to = {divides ? divide : multiply, divides ? BW_GRID_DIVIDE : BW_GRID_MULTIPLY, (int)values.data[2], (int)values.data[3],
           (int)values.data[4], 0, 0, 0, 0};
    if (!(to->value > 0 && to->value < 1e30f)) return fail("grid's multiply and divide must be positive");
    if (to->low < 0 || to->low > to->high) return fail("grid's low and high must be codes, low not above high");
    return core(bw_grid_prepare(to));
  }
};

// Whether other threads take tasks of a node. The runtime does not say how many it has, so each node learns it: after SURE calls whose
// tasks all ran on the caller's thread, most calls are one task, which takes less time (weights are read once, and what tasks share is
// made once); a call in AGAIN is cut as before, to see whether somebody helps now.
class Helpers {
 public:
  bool expected() {
    const int calls = alone.load(std::memory_order_relaxed);
    if (calls < SURE || calls >= AGAIN) return true;
    alone.store(calls + 1, std::memory_order_relaxed);
    return false;
  }
  void seen(bool somebody) {
    const int calls = alone.load(std::memory_order_relaxed);
    alone.store(somebody ? 0 : calls < SURE ? calls + 1 : SURE, std::memory_order_relaxed);
  }

 private:
  static constexpr int SURE = 3, AGAIN = 64;
  std::atomic<int> alone{0};
};

struct Call;

// The values of the steps of a node while it runs.
struct Frame {
  virtual ort::Status* input(const Call& call, size_t index, View* to) = 0;
  virtual ort::Status* output(const Call& call, size_t index, const int64_t* dims, size_t rank, void** data) = 0;
};

// A node, or one step of a node, while it runs.
struct Call : Place {
  ort::Context* context;
  Helpers* helpers;
  const Step* step = nullptr;
  Frame* frame = nullptr;

  // What the caller of a session feeds may start at any byte.
  BW_ONCE ort::Status* input(size_t index, const char* what, size_t element, View* to) const {
    if (frame) {
      BW_TRY(frame->input(*this, index, to));
    } else {
      const ort::Value* value;
      BW_TRY(ort::input(api)(context, index, &value));
      if (!value) return fail("%s is missing", what);
      BW_TRY(view(value, to));
    }
    return (uintptr_t)to->data % element ? fail("%s must start at a multiple of %zu bytes", what, element) : nullptr;
  }
  BW_ONCE ort::Status* image(size_t index, const char* what, size_t element, View* to) const {
    BW_TRY(input(index, what, element, to));
    return to->rank == 4 ? nullptr : fail("%s must have 4 axes, got %zu", what, to->rank);
  }
  BW_ONCE ort::Status* like_result(size_t index, int64_t n, int64_t h, int64_t w, int64_t last, View* to) const {
    BW_TRY(image(index, "residual", sizeof(float), to));
    const int64_t* dims = to->dims;
    if (dims[0] == n && dims[1] == h && dims[2] == w && dims[3] == last) return nullptr;
    return fail("residual is [%lld, %lld, %lld, %lld], the result [%lld, %lld, %lld, %lld]", (long long)dims[0], (long long)dims[1],
                (long long)dims[2], (long long)dims[3], (long long)n, (long long)h, (long long)w, (long long)last);
  }
  BW_ONCE ort::Status* output(size_t index, const int64_t* dims, size_t rank, void** data) const {
    return frame ? frame->output(*this, index, dims, rank, data) : output_of_node(index, dims, rank, data);
  }
  BW_ONCE ort::Status* output_of_node(size_t index, const int64_t* dims, size_t rank, void** data) const {
    ort::Value* value = nullptr;
    BW_TRY(ort::output(api)(context, index, dims, rank, &value));
    if (!value) return fail("output %zu is missing", index);
    return ort::tensor_data(api)(value, data);
  }
  BW_ONCE ort::Status* image_out(size_t index, int64_t n, int64_t h, int64_t w, int64_t last, void** data) const {
    const int64_t dims[4] = {n, h, w, last};
    return output(index, dims, 4, data);
  }
};

// While it lives, the core's tasks run on the runtime's own threads. With less than two chunks of work a node stays on its
// thread, because waking another one costs microseconds. `work` is in products of one bit by one bit: a chunk takes about
// three microseconds.
class Threads : bw_runner {
 public:
  Threads(const Call& call, double work) : call(call) {
    const double chunks = work / CHUNK;
    most = chunks < 2 || !call.helpers->expected() ? 1 : chunks < 512 ? (int64_t)chunks : 512;
    run = in_runtime;
    if (most > 1) bw_set_runner(this);
  }
  Threads(const Threads&) = delete;
  ~Threads() { bw_set_runner(before); }
  // What to tell the core, which makes about eight tasks for each thread. How many there are the runtime does not say.
  int count() const { return most > 1 ? (int)(most < 16 ? 2 : most / 8) : 1; }

 private:
  static constexpr double CHUNK = 6e6;
  const Call& call;
  const bw_runner* const before = bw_current_runner();
  int64_t most;

  struct Range {
    void (*task)(void*, int64_t);
    void* data;
    int64_t count, parts;
    const void* caller;
    std::atomic<bool> helped;
    void part(int64_t index) {
      if (here() != caller) helped.store(true, std::memory_order_relaxed);
      for (int64_t i = index * count / parts; i < (index + 1) * count / parts; i++) task(data, i);
    }
  };
  static const void* here() {  // another address on each thread
    static thread_local char mark;
    return &mark;
  }
  static void in_runtime(const bw_runner* self, int64_t count, void (*task)(void*, int64_t), void* data) {
    const Threads& threads = *static_cast<const Threads*>(self);
    Range range = {task, data, count, count < threads.most ? count : threads.most, here(), {false}};
    const auto part = [](void* of, size_t index) { static_cast<Range*>(of)->part((int64_t)index); };
    const ort::Api* api = threads.call.api;
    ort::Status* failed = ort::parallel_for(api)(threads.call.context, part, (size_t)range.parts, 0, &range);
    if (!failed) return threads.call.helpers->seen(range.helped);
    ort::release_status(api)(failed);
    for (int64_t i = 0; i < count; i++) task(data, i);  // tasks that ran already write the same again
  }
};

// What the runtime holds for a node. One kernel may run in several threads at once: `run` changes nothing but `helpers`.
struct Kernel {
  mutable Helpers helpers;
  virtual ~Kernel() {}
  virtual ort::Status* create(const Node& node) = 0;
  virtual ort::Status* run(const Call& call) const = 0;
};

}  // namespace
