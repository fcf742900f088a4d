// The operators of the domain "bitwright", version 1, for ONNX Runtime. A file carries the meaning of each as a function of
// standard operators; where this library is registered, its kernels run instead.
//
// Codes are uint8 tensors [N, H, W, bytes]: one byte per channel, or (bits) the uint32 words of bitwright.h, 4 * planes * Cw
// bytes per pixel. A constant is an initializer, read once when the kernel is made; a run fetches x and the residual.
//
//   Guard           x [N, ...]                                    float [N]: 0, or NaN where an element of the sample is NaN
//                                                                 or beyond 2^20
//   PackBits        x, thresholds [L] or [C, L], flip [0] or [C]  codes; channels_last, planes, groups
//   PackBytes       the same                                      codes; channels_last
//   PackRound       x, grid [5]                                   codes; channels_last
//   MaxPool         codes                                         codes; planes (0: bytes), kernel_shape, strides, pads,
//                                                                 dilations, ceil_mode
//   MaxPoolFloats   x [N, H, W, C]                                float [N, OH, OW, C]; kernel_shape, strides, pads,
//                                                                 dilations, ceil_mode
//   AveragePoolFloats  the same                                   the same; taps in the padding do not count
//   SubsampleFloats x [N, H, W, C]                                float [N, ceil(H / s), ceil(W / s), low + C + high]; strides,
//                   channel_pads [low, high]
//   ConvFloats      x [N, H, W, C], weight [O, C, kh, kw],        float [N, OH, OW, O]: max(conv + add + residual, floor); strides,
//                   add [O], floor, residual                      pads, dilations, channels_last (0: x is [N, C, H, W])
//   MeanFloats      x [N, H, W, C]                                float [N, 1, 1, C]
//   ConvInt         common                                        int32 [N, OH, OW, O]
//   Terms           sums int32 [N, OH, OW, T * O],                float [N, OH, OW, O]: the sum over T of sums * scale, plus add
//                   scale [T, O], add [O]
//   Conv            common, scale [O], add [O], floor, residual   float [N, OH, OW, O]
//   ConvCut         as Conv, cuts [O], flip [0] or [O]            float, codes; out_bytes
//   ConvLadder      as Conv, cuts [L][O]                          float, words
//   ConvRound       as Conv, grid [5]                             float, codes
//   ConvPool, ConvCutPool, ConvRoundPool: the same three of floats that were pooled; pool_kernel, pool_strides, pool_pads
//   ConvCodes       common, thresholds [L, O], flip [0] or [O]    codes; out_bytes, out_planes, out_groups
//   ConvRoundCodes  common, scale [O], add [O], grid [5]          codes
//   Run             program (ort_run.h), the inputs of its steps  what its steps make for others
//
// common: x (codes), bits, shape [planes, O, C / group, kh, kw], mult [planes], zero [1], x_mult [1],
//         taps [O or 1, kh, kw], and the attributes x_planes (-b: bytes below 2^b), strides, pads, dilations, group.
//         Bit i of the flattened weight is bit i % 8 of byte i / 8 of `bits`; a weight is zero + sum of mult[q] * bit_q,
//         X = zero_c + x_mult * code; `taps` is what zero_c adds at each tap that lies inside the image.
// grid:   multiply, divide (one of them 1), base, low, high: code = clip(rint(y / divide * multiply) + base, low, high)
// floor:  0 (relu) or -inf; residual: like the result, or a constant 0 for none
#include <mutex>
#include <new>

#include "ort_codes.h"
#include "ort_conv.h"
#include "ort_floats.h"
#include "ort_pool.h"
#include "ort_run.h"
#include "ort_terms.h"

namespace {

const int F = ort::FLOAT32, U = ort::UINT8, I = ort::INT32, L = ort::INT64;

struct Description : ort::Operator, Operation {};

const Description& described(const ort::Operator* of) { return *static_cast<const Description*>(of); }

size_t count_of(const int* types, size_t most) {
  size_t count = 0;
  while (count < most && types[count]) count++;
  return count;
}

// A kernel and what it needs to describe itself.
struct Made {
  Place place;
  Kernel* kernel;
  ~Made() { delete kernel; }
};

ort::Status* create(const ort::Operator* of, const ort::Api* api, const ort::Info* info, void** kernel) {
  const Node node = {{api, described(of).op}, info, nullptr, 0};
  Made* made = new (std::nothrow) Made{{api, described(of).op}, described(of).make()};
  ort::Status* status = made && made->kernel ? made->kernel->create(node) : node.no_memory();
  if (status) delete made;
  else *kernel = made;
  return status;
}

ort::Status* run(void* kernel, ort::Context* context) {
  const Made* made = static_cast<const Made*>(kernel);
  return made->kernel->run(Call{made->place, context, &made->kernel->helpers, nullptr, nullptr});
}

#define BW_ORT_OPERATOR(name, inputs, outputs, ...) \
  Description { describe(), {name, inputs, outputs, []() -> Kernel* { return new (std::nothrow) __VA_ARGS__; }} }
#define BW_TYPES(...) \
  { __VA_ARGS__ }
#define BW_COMMON U, U, L, I, I, I, I
#define BW_FLOATS BW_COMMON, F, F, F, F

ort::Operator describe() {
  ort::Operator op = {};
  op.version = ort::VERSION;
  op.name = [](const ort::Operator* of) { return described(of).op; };
  op.provider = [](const ort::Operator*) -> const char* { return nullptr; };
  op.input_type = [](const ort::Operator* of, size_t i) { return described(of).input_types[i]; };
  op.inputs = [](const ort::Operator* of) { return count_of(described(of).input_types, 16); };
  op.output_type = [](const ort::Operator* of, size_t i) { return described(of).output_types[i]; };
  op.outputs = [](const ort::Operator* of) { return count_of(described(of).output_types, 2); };
  op.input_optional = op.output_optional = op.input_memory = [](const ort::Operator*, size_t) { return 0; };
  op.variadic_inputs = op.variadic_inputs_alike = [](const ort::Operator*) { return 1; };
  op.variadic_outputs = op.variadic_outputs_alike = [](const ort::Operator*) { return 1; };
  op.create = create;
  op.run = run;
  op.destroy = [](void* kernel) { delete static_cast<Made*>(kernel); };
  op.first_version = [](const ort::Operator*) { return 1; };
  op.last_version = [](const ort::Operator*) { return 0x7fffffff; };
  return op;
}

const Description operators[] = {
    BW_ORT_OPERATOR("Guard", BW_TYPES(F), BW_TYPES(F), Guard),
    BW_ORT_OPERATOR("PackBits", BW_TYPES(F, F, U), BW_TYPES(U), Pack(Pack::BITS)),
    BW_ORT_OPERATOR("PackBytes", BW_TYPES(F, F, U), BW_TYPES(U), Pack(Pack::BYTES)),
    BW_ORT_OPERATOR("PackRound", BW_TYPES(F, F), BW_TYPES(U), Pack(Pack::ROUND)),
    BW_ORT_OPERATOR("MaxPool", BW_TYPES(U), BW_TYPES(U), MaxPool),
    BW_ORT_OPERATOR("ConvFloats", BW_TYPES(F, F, F, F, F), BW_TYPES(F), ConvFloats),
    BW_ORT_OPERATOR("MaxPoolFloats", BW_TYPES(F), BW_TYPES(F), PoolFloats(PoolFloats::LARGEST)),
    BW_ORT_OPERATOR("AveragePoolFloats", BW_TYPES(F), BW_TYPES(F), PoolFloats(PoolFloats::AVERAGE)),
    BW_ORT_OPERATOR("SubsampleFloats", BW_TYPES(F), BW_TYPES(F), SubsampleFloats),
    BW_ORT_OPERATOR("MeanFloats", BW_TYPES(F), BW_TYPES(F), PoolFloats(PoolFloats::MEAN)),
    BW_ORT_OPERATOR("ConvInt", BW_TYPES(BW_COMMON), BW_TYPES(I), ConvInt),
    BW_ORT_OPERATOR("Terms", BW_TYPES(I, F, F), BW_TYPES(F), Terms),
    BW_ORT_OPERATOR("Conv", BW_TYPES(BW_FLOATS), BW_TYPES(F), ConvFloat(ConvFloat::NOTHING)),
    BW_ORT_OPERATOR("ConvCut", BW_TYPES(BW_FLOATS, F, U), BW_TYPES(F, U), ConvFloat(ConvFloat::CUT)),
    BW_ORT_OPERATOR("ConvLadder", BW_TYPES(BW_FLOATS, F), BW_TYPES(F, U), ConvFloat(ConvFloat::LADDER)),
    BW_ORT_OPERATOR("ConvRound", BW_TYPES(BW_FLOATS, F), BW_TYPES(F, U), ConvFloat(ConvFloat::ROUND)),
    BW_ORT_OPERATOR("ConvPool", BW_TYPES(BW_FLOATS), BW_TYPES(F), ConvFloat(ConvFloat::NOTHING, true)),
    BW_ORT_OPERATOR("ConvCutPool", BW_TYPES(BW_FLOATS, F, U), BW_TYPES(F, U), ConvFloat(ConvFloat::CUT, true)),
    BW_ORT_OPERATOR("ConvRoundPool", BW_TYPES(BW_FLOATS, F), BW_TYPES(F, U), ConvFloat(ConvFloat::ROUND, true)),
    BW_ORT_OPERATOR("ConvCodes", BW_TYPES(BW_COMMON, I, U), BW_TYPES(U), ConvCodes(ConvCodes::THRESHOLDS)),
    BW_ORT_OPERATOR("ConvRoundCodes", BW_TYPES(BW_COMMON, F, F, F), BW_TYPES(U), ConvCodes(ConvCodes::ROUND)),
};

const Operation* operation(const char* op) {
  for (const Description& is : operators)
    if (!strcmp(is.op, op)) return &is;
  return nullptr;
}

// Their inputs and outputs are of any number and type: the steps check them. A file has a function for each name, so there are several.
ort::Operator run_operator() {
  ort::Operator op = describe();
  op.input_type = [](const ort::Operator*, size_t i) -> int { return i ? ort::ANY : U; };
  op.inputs = [](const ort::Operator*) -> size_t { return 2; };
  op.output_type = [](const ort::Operator*, size_t) -> int { return ort::ANY; };
  op.outputs = [](const ort::Operator*) -> size_t { return 1; };
  op.input_optional = [](const ort::Operator*, size_t i) -> int { return i ? ort::VARIADIC : 0; };
  op.output_optional = [](const ort::Operator*, size_t) -> int { return ort::VARIADIC; };
  op.variadic_inputs_alike = op.variadic_outputs_alike = [](const ort::Operator*) { return 0; };
  return op;
}

#define BW_RUN(name) \
  Description { run_operator(), {name, {}, {}, []() -> Kernel* { return new (std::nothrow) Run(operation); }} }
const Description runs[] = {BW_RUN("Run"),  BW_RUN("Run2"), BW_RUN("Run3"), BW_RUN("Run4"),
                            BW_RUN("Run5"), BW_RUN("Run6"), BW_RUN("Run7"), BW_RUN("Run8")};

// One domain per runtime in the process (there may be two), never freed: sessions keep pointers to it and to the operators.
struct Registered {
  const ort::Api* api;
  ort::Domain* domain;
  Registered* next;
};
Registered* registered = nullptr;
std::mutex registering;

ort::Status* domain_of(const ort::Api* api, ort::Domain** domain) {
  const std::lock_guard<std::mutex> lock(registering);
  for (const Registered* at = registered; at; at = at->next)
    if (at->api == api) return *domain = at->domain, nullptr;
  BW_TRY(ort::create_domain(api)("bitwright", domain));
  for (const Description& op : operators) BW_TRY(ort::add_operator(api)(*domain, &op));
  for (const Description& op : runs) BW_TRY(ort::add_operator(api)(*domain, &op));
  Registered* entry = new (std::nothrow) Registered{api, *domain, registered};
  if (entry) registered = entry;  // else the next session makes its own
  return nullptr;
}

}  // namespace

extern "C" BW_API ort::Status* RegisterCustomOps(ort::Options* options, const ort::ApiBase* base) {
  ort::Status* error = nullptr;
  const ort::Api* api = ort::api_of(base, &error);
  if (!api) return error;
  ort::Domain* domain;
  BW_TRY(domain_of(api, &domain));
  return ort::add_domain(api)(options, domain);
}
