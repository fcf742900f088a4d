// As much of ONNX Runtime's C interface as a library of CPU operators needs, declared here: building it takes no foreign
// header and no foreign library. The interface is a table of function pointers that only ever grows, so a function
// never changes its place and is addressed by its number.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace ort {

const uint32_t VERSION = 17;  // ONNX Runtime 1.17, the first with all that is used here

struct Status;      // null: all went well
struct Options;     // of a session
struct Domain;
struct Info;        // a node, while its kernel is made
struct Context;     // a node, while it runs
struct Value;
struct TensorInfo;
struct ShapeContext;
struct Operator;

enum Element { ANY = 0, FLOAT32 = 1, UINT8 = 2, INT32 = 6, INT64 = 7 };  // of a tensor
const int VARIADIC = 2;  // of the last input or output of an operator: any number of tensors
enum Code { INVALID_ARGUMENT = 2, NOT_IMPLEMENTED = 9 };

struct Api {
  void* slot[275];
};

struct ApiBase {
  const Api* (*get)(uint32_t version);  // null where the runtime is older
  const char* (*version)();
};

#define BW_ORT_FUNCTION(name, number, result, ...) \
  inline auto name(const Api* api) { return reinterpret_cast<result (*)(__VA_ARGS__)>(api->slot[number]); }
BW_ORT_FUNCTION(create_status, 0, Status*, int code, const char* text)
BW_ORT_FUNCTION(create_domain, 26, Status*, const char* name, Domain**)
BW_ORT_FUNCTION(add_operator, 27, Status*, Domain*, const Operator*)
BW_ORT_FUNCTION(add_domain, 28, Status*, Options*, Domain*)
BW_ORT_FUNCTION(tensor_data, 51, Status*, const Value*, void**)
BW_ORT_FUNCTION(element_type, 60, Status*, const TensorInfo*, int*)
BW_ORT_FUNCTION(rank, 61, Status*, const TensorInfo*, size_t*)
BW_ORT_FUNCTION(dimensions, 62, Status*, const TensorInfo*, int64_t*, size_t)
BW_ORT_FUNCTION(tensor_info, 65, Status*, const Value*, TensorInfo**)
BW_ORT_FUNCTION(attribute, 86, Status*, const Info*, const char* name, int64_t*)
BW_ORT_FUNCTION(input, 90, Status*, const Context*, size_t, const Value**)
BW_ORT_FUNCTION(output, 91, Status*, Context*, size_t, const int64_t* dims, size_t rank, Value**)
BW_ORT_FUNCTION(release_status, 93, void, Status*)
BW_ORT_FUNCTION(release_tensor_info, 99, void, TensorInfo*)
BW_ORT_FUNCTION(attributes, 163, Status*, const Info*, const char* name, int64_t*, size_t* count)
BW_ORT_FUNCTION(constant_input, 249, Status*, const Info*, size_t, int* is_constant, const Value**)
BW_ORT_FUNCTION(parallel_for, 274, Status*, const Context*, void (*)(void*, size_t), size_t count, size_t batches, void*)
#undef BW_ORT_FUNCTION

// How an operator describes itself. The runtime reads no member that is newer than `version`.
struct Operator {
  uint32_t version;
  void* (*create_before_16)(const Operator*, const Api*, const Info*);
  const char* (*name)(const Operator*);
  const char* (*provider)(const Operator*);  // null: the CPU
  int (*input_type)(const Operator*, size_t);
  size_t (*inputs)(const Operator*);
  int (*output_type)(const Operator*, size_t);
  size_t (*outputs)(const Operator*);
  void (*run_before_16)(void*, Context*);
  void (*destroy)(void*);
  int (*input_optional)(const Operator*, size_t);
  int (*output_optional)(const Operator*, size_t);
  int (*input_memory)(const Operator*, size_t);
  int (*variadic_inputs)(const Operator*);
  int (*variadic_inputs_alike)(const Operator*);
  int (*variadic_outputs)(const Operator*);
  int (*variadic_outputs_alike)(const Operator*);
  Status* (*create)(const Operator*, const Api*, const Info*, void** kernel);
  Status* (*run)(void* kernel, Context*);
  Status* (*infer_shapes)(const Operator*, ShapeContext*);  // null: nothing is said about shapes
  int (*first_version)(const Operator*);
  int (*last_version)(const Operator*);
  void* newer[4];
};

// The table, or null and an error made with what every runtime has.
inline const Api* api_of(const ApiBase* base, Status** error) {
  const Api* api = base->get(VERSION);
  if (api) return api;
  const Api* oldest = base->get(1);
  *error = oldest ? create_status(oldest)(NOT_IMPLEMENTED, "bitwright's operators need onnxruntime 1.17 or newer") : nullptr;
  return nullptr;
}

}  // namespace ort
