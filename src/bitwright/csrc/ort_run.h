// Several of our operators as one node: what a packed net does from one foreign operator to the next. A node costs the runtime about a
// microsecond, as much as a small layer; and what one step writes for the next lies in memory that this thread has used before.
//
// The program is the text of the first input, words between blanks:
//
//   inputs values outputs id... steps, then for each step: operator id... (inputs, then outputs) attributes (name count number...)...
//
// Values are numbered: the inputs of the node (the program is 0), then what the steps make. A step has all inputs and outputs of its
// operator, reads only what stands before it, and makes a value once.
#pragma once
#include <limits.h>
#include <new>

#include "ort_tensors.h"

namespace {

// Memory for values, kept by the thread from run to run.
class Rooms {
 public:
  struct Room {
    Room* next;
    void* data;
    size_t bytes;
    bool taken;
  };
  ~Rooms() {
    for (Room* room = first; room;) {
      Room* next = room->next;
      free(room->data);
      delete room;
      room = next;
    }
  }
  // The smallest that is free and large enough, or else a free one made larger, or a new one; null: no memory.
  Room* take(size_t bytes) {
    Room *best = nullptr, *any = nullptr;
    for (Room* room = first; room; room = room->next) {
      if (room->taken) continue;
      any = room;
      if (room->bytes >= bytes && (!best || room->bytes < best->bytes)) best = room;
    }
    if (!best && !(best = any)) {
      best = new (std::nothrow) Room{first, nullptr, 0, false};
      if (!best) return nullptr;
      first = best;
    }
    if (best->bytes < bytes) {
      free(best->data);
      best->bytes = posix_memalign(&best->data, 64, bytes) ? 0 : bytes;
      if (!best->bytes) return best->data = nullptr, nullptr;
    }
    best->taken = true;
    return best;
  }
  static void leave(Room* room) {
    if (room->bytes > KEPT) free(room->data), room->data = nullptr, room->bytes = 0;
    room->taken = false;
  }

 private:
  static constexpr size_t KEPT = (size_t)32 << 20;
  Room* first = nullptr;
};
thread_local Rooms rooms;

// Reads a program; `wrong` where it is none.
struct Words {
  char* at;
  bool wrong = false;
  const char* word() {
    while (*at == ' ') at++;
    const char* const begin = at;
    while (*at && *at != ' ') at++;
    wrong |= begin == at;
    if (*at) *at++ = 0;
    return begin;
  }
  int64_t number(int64_t least, int64_t most) {
    char* end;
    const char* const text = word();
    const long long value = strtoll(text, &end, 10);
    if (*text && !*end && value >= least && value <= most) return value;
    wrong = true;
    return least;
  }
};

struct Operation {
  const char* op;
  int input_types[16], output_types[2];  // ended by 0
  Kernel* (*make)();
};

struct Run : Kernel {
  static constexpr int64_t MOST = 1 << 20;  // values, steps
  const Operation* (*find)(const char* op);
  Array<char> text;
  int64_t inputs = 0, values = 0, outputs = 0, count = 0;
  Step* steps = nullptr;
  Kernel** kernels = nullptr;
  Array<int32_t> output_of, last_read, type;  // of each value: the output of the node or -1; the last step that reads it; its elements
  explicit Run(const Operation* (*find)(const char*)) : find(find) {}
  ~Run() override {
    for (int64_t i = 0; kernels && i < count; i++) delete kernels[i];
    delete[] kernels;
    delete[] steps;
  }

  BW_COLD ort::Status* create(const Node& node) override {
    Array<uint8_t> program;
    BW_TRY(node.constant(0, "program", &program));
    if (!text.make(program.count + 1)) return node.no_memory();
    if (program.count) memcpy(text.data, program.data, (size_t)program.count);
    text.data[program.count] = 0;
    Words words = {text.data};
    inputs = words.number(1, MOST), values = words.number(inputs, MOST), outputs = words.number(1, MOST);
    if (words.wrong || !output_of.make(values) || !last_read.make(values) || !type.make(values)) return no_program(node);
    for (int64_t i = 0; i < values; i++) output_of.data[i] = last_read.data[i] = -1, type.data[i] = 0;
    for (int64_t i = 0; i < outputs; i++) output_of.data[words.number(0, values - 1)] = (int32_t)i;
    count = words.number(1, MOST);
    if (words.wrong) return no_program(node);
    steps = new (std::nothrow) Step[(size_t)count]();
    kernels = new (std::nothrow) Kernel*[(size_t)count]();
    if (!steps || !kernels) return node.no_memory();
    for (int64_t i = 0; i < count; i++) {
      const Operation* const is = find(words.word());
      if (!is || !read(words, *is, i)) return no_program(node);
    }
    int64_t made = 0;
    for (int64_t i = 0; i < values; i++) made += output_of.data[i] >= 0 && i >= inputs && type.data[i];
    if (made != outputs) return no_program(node);
    for (int64_t i = 0; i < count; i++) {
      if (!(kernels[i] = find(steps[i].op)->make())) return node.no_memory();
      BW_TRY(kernels[i]->create(Node{{node.api, steps[i].op}, node.info, steps + i, inputs}));
    }
    return nullptr;
  }

  ort::Status* run(const Call& call) const override {
    Values now(*this, call);
    if (!now.made) return call.no_memory();
    for (int64_t i = 0; i < count; i++) {
      BW_TRY(kernels[i]->run(Call{{call.api, steps[i].op}, call.context, &kernels[i]->helpers, steps + i, &now}));
      now.leave_behind(i);
    }
    return nullptr;
  }

 private:
  static ort::Status* no_program(const Node& node) { return node.fail("the first input is no program of steps"); }

  // Step i, whose operator's name was read.
  bool read(Words& words, const Operation& is, int64_t i) {
    Step& step = steps[i];
    step.op = is.op, step.input_types = is.input_types, step.output_types = is.output_types;
    for (size_t k = 0; k < 16 && is.input_types[k]; k++) {
      const int64_t id = step.inputs[k] = words.number(1, values - 1);
      if (id >= inputs && type.data[id] != is.input_types[k]) return false;  // none has made it, or it is of another type
      last_read.data[id] = (int32_t)i;
    }
    for (size_t k = 0; k < 2 && is.output_types[k]; k++) {
      const int64_t id = step.outputs[k] = words.number(inputs, values - 1);
      if (words.wrong || type.data[id]) return false;
      type.data[id] = is.output_types[k];
    }
    step.attribute_count = (size_t)words.number(0, 16);
    for (size_t k = 0; k < step.attribute_count; k++) {
      Step::Attribute& to = step.attributes[k];
      to.name = words.word(), to.count = (size_t)words.number(1, 4);
      for (size_t n = 0; n < to.count; n++) to.values[n] = words.number(LLONG_MIN, LLONG_MAX);
    }
    return !words.wrong;
  }

  // What the steps have made, while one call runs.
  struct Values : Frame {
    struct Made {
      View view;
      Rooms::Room* room;
    };
    const Run& net;
    const Call& node;
    Rooms::Room* const own;
    Made* made = nullptr;
    Values(const Run& net, const Call& node) : net(net), node(node), own(rooms.take((size_t)(net.values - net.inputs) * sizeof(Made))) {
      if (own) made = (Made*)own->data;
      for (int64_t i = 0; made && i < net.values - net.inputs; i++) made[i].room = nullptr;
    }
    ~Values() {
      for (int64_t i = net.inputs; made && i < net.values; i++) leave(i);
      if (own) Rooms::leave(own);
    }
    void leave(int64_t id) {
      Rooms::Room*& room = made[id - net.inputs].room;
      if (room) Rooms::leave(room);
      room = nullptr;
    }
    void leave_behind(int64_t step) {
      const auto unless_read = [&](int64_t id) {
        if (id >= net.inputs && net.last_read.data[id] <= step) leave(id);
      };
      for (size_t k = 0; k < 16 && net.steps[step].input_types[k]; k++) unless_read(net.steps[step].inputs[k]);
      for (size_t k = 0; k < 2 && net.steps[step].output_types[k]; k++) unless_read(net.steps[step].outputs[k]);
    }
    ort::Status* input(const Call& call, size_t index, View* to) override {
      const int64_t id = call.step->inputs[index];
      if (id >= net.inputs) return *to = made[id - net.inputs].view, nullptr;
      const ort::Value* value;
      BW_TRY(ort::input(call.api)(call.context, (size_t)id, &value));
      if (!value) return call.fail("input %lld of the node is missing", (long long)id);
      BW_TRY(call.has_type(value, call.step->input_types[index]));
      return call.view(value, to);
    }
    ort::Status* output(const Call& call, size_t index, const int64_t* dims, size_t rank, void** data) override {
      const int64_t id = call.step->outputs[index];
      Made& to = made[id - net.inputs];
      to.view.rank = rank, to.view.count = 1;
      int64_t bytes = net.type.data[id] == ort::UINT8 ? 1 : 4;  // no operator makes elements of eight
      for (size_t i = 0; i < rank; i++) {
        to.view.dims[i] = dims[i], to.view.count *= dims[i];
        if (__builtin_mul_overflow(bytes, dims[i], &bytes)) return call.no_memory();
      }
      if (net.output_of.data[id] >= 0) {
        BW_TRY(node.output_of_node((size_t)net.output_of.data[id], dims, rank, data));
      } else {
        to.room = rooms.take(bytes ? (size_t)bytes : 1);
        if (!to.room) return call.no_memory();
        *data = to.room->data;
      }
      to.view.data = *data;
      return nullptr;
    }
  };
};

}  // namespace
