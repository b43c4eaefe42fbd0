// The C ABI between Roundhouse and a backend that is its own shared library. Its rules are in backends/abi/src/lib.rs.
// Made from there by `cargo test -p roundhouse-abi` with ROUNDHOUSE_WRITE_HEADER=1: not written by hand.

#ifndef ROUNDHOUSE_BACKEND_H
#define ROUNDHOUSE_BACKEND_H

#include <stddef.h>
#include <stdint.h>
// The function that a backend exports: const RoundhouseBackend *roundhouse_backend(void);

// The major number of this version of the ABI.
#define ROUNDHOUSE_ABI_MAJOR 1

// The minor number of this version of the ABI.
#define ROUNDHOUSE_ABI_MINOR 1

// All went well.
#define ROUNDHOUSE_OK 0

// A file of the model is missing.
#define ROUNDHOUSE_NOT_FOUND 1

// The model, its configuration or the tensors of a request are wrong.
#define ROUNDHOUSE_INVALID_ARGUMENT 2

// The backend cannot do what is asked.
#define ROUNDHOUSE_UNSUPPORTED 3

// The device has no memory for it.
#define ROUNDHOUSE_OUT_OF_DEVICE_MEMORY 4

// What the backend stands on is missing or of a wrong version; the text names the mend.
#define ROUNDHOUSE_NOT_READY 5

// Everything else.
#define ROUNDHOUSE_FAILED 6

// One byte, 0 or 1.
#define ROUNDHOUSE_BOOL 1

// Unsigned, one byte.
#define ROUNDHOUSE_UINT8 2

// Unsigned, two bytes.
#define ROUNDHOUSE_UINT16 3

// Unsigned, four bytes.
#define ROUNDHOUSE_UINT32 4

// Unsigned, eight bytes.
#define ROUNDHOUSE_UINT64 5

// Signed, one byte.
#define ROUNDHOUSE_INT8 6

// Signed, two bytes.
#define ROUNDHOUSE_INT16 7

// Signed, four bytes.
#define ROUNDHOUSE_INT32 8

// Signed, eight bytes.
#define ROUNDHOUSE_INT64 9

// IEEE 754, two bytes.
#define ROUNDHOUSE_FP16 10

// IEEE 754, four bytes.
#define ROUNDHOUSE_FP32 11

// IEEE 754, eight bytes.
#define ROUNDHOUSE_FP64 12

// Strings of bytes, end to end in row-major order: each a length of four bytes, then so many bytes.
#define ROUNDHOUSE_BYTES 13

// The upper half of an FP32.
#define ROUNDHOUSE_BF16 14

// The processor, and host memory; the number of the device is 0.
#define ROUNDHOUSE_CPU 0

// A GPU; the number of the device is CUDA's.
#define ROUNDHOUSE_GPU 1

// Something is broken.
#define ROUNDHOUSE_LOG_ERROR 1

// Something is odd.
#define ROUNDHOUSE_LOG_WARN 2

// Something happened.
#define ROUNDHOUSE_LOG_INFO 3

// For those who look for a fault.
#define ROUNDHOUSE_LOG_DEBUG 4

// An input need not be given (`flags` of [`RoundhouseTensorInfo`]).
#define ROUNDHOUSE_TENSOR_OPTIONAL 1

// The model reads or maps its files while it lives ([`RoundhouseModelInfo::flags`]).
#define ROUNDHOUSE_MODEL_KEEPS_FILES 1

// [`RoundhouseModelMemory::bytes`] is all that the model holds on its device.
#define ROUNDHOUSE_MEMORY_EXACT 0

// [`RoundhouseModelMemory::bytes`] is what runs have taken and keep, beyond what the load took.
#define ROUNDHOUSE_MEMORY_RUNS 1

// Memory of a GPU that is no model's, since it is kept when the model goes that first needed it: a library's workspace.
#define ROUNDHOUSE_MEMORY_SHARED 1

// The bytes of an error's text, the NUL included.
#define ROUNDHOUSE_ERROR_BYTES 2048

// Something that can run a model beside others: the backend's own.
typedef struct RoundhouseInstance RoundhouseInstance;

// A loaded model: the backend's own.
typedef struct RoundhouseModel RoundhouseModel;

// What a function returns: [`OK`] or a kind of error. Another number than those here is taken for [`FAILED`].
typedef int32_t RoundhouseStatus;

// How urgent a line of the log is.
typedef int32_t RoundhouseLogLevel;

// A key of the configuration's `parameters`, and what it is set to.
typedef struct RoundhouseParameter {
  // The key.
  const char *key;
  // Its `string_value`.
  const char *value;
} RoundhouseParameter;

// What the server tells a backend of itself; lives as long as the process.
typedef struct RoundhouseHost {
  // The bytes of this struct, as the server knows it.
  size_t struct_size;
  // The server's version of the ABI.
  uint32_t abi_major;
  // The server's version of the ABI.
  uint32_t abi_minor;
  // How many threads of the server run models on the CPU at a time, at least 1.
  uint32_t executor_threads;
  // Writes a line to the server's log, from any thread.
  void (*log)(RoundhouseLogLevel level, const char *message);
  // What the operator set for this backend as a whole, by key.
  const struct RoundhouseParameter *settings;
  // How many there are.
  size_t setting_count;
  // Since 1.1. Memory of a GPU, counted for the model that the thread's call is for. What is taken during `load` and
  // `instantiate` is the model's: while the model sleeps it lies in host memory, and is back at the same address before the
  // next call. What is taken during `infer` is for the run, on the stream that is named. `device_id` is CUDA's number;
  // `flags` is [`MEMORY_SHARED`] or 0. Null where there is none: the server knows why, and answers so if the call then fails.
  void *(*device_allocate)(size_t bytes, uint32_t device_id, void *stream, uint32_t flags);
  // Since 1.1. Frees what `device_allocate` gave, from any thread, while the work of its stream may still use it: it is
  // given to what comes later on that stream. Nothing for null.
  void (*device_free)(void *at);
  // Since 1.1. A stream of a GPU for an instance (`cudaStream_t`), each in turn; it lives as long as the model that is being
  // loaded or instantiated. Streams of the server's share what runs take. Null for a GPU that the server does not hand out.
  void *(*device_stream)(uint32_t device_id);
} RoundhouseHost;

// Where a function that fails says why.
typedef struct RoundhouseError {
  // The text, cut short if it is longer. Empty when a function is called.
  char message[ROUNDHOUSE_ERROR_BYTES];
} RoundhouseError;

// Where a model runs.
typedef int32_t RoundhouseDeviceKind;

// The type of a tensor's elements, which lie in the order of the machine (little-endian).
typedef int32_t RoundhouseDataType;

// A tensor as a model or its configuration has it.
typedef struct RoundhouseTensorInfo {
  // Its name.
  const char *name;
  // The dimensions, a batch dimension included; -1 for any size.
  const int64_t *dims;
  // How many there are.
  size_t rank;
  // The type of its elements.
  RoundhouseDataType data_type;
  // [`TENSOR_OPTIONAL`] or 0.
  uint32_t flags;
} RoundhouseTensorInfo;

// One version of a model that is to be loaded.
typedef struct RoundhouseLoadRequest {
  // The bytes of this struct, as the server knows it.
  size_t struct_size;
  // The model's name, for messages.
  const char *model_name;
  // The version's number.
  uint64_t version;
  // The model's folder.
  const char *directory;
  // The folder of this version.
  const char *version_directory;
  // The file to load, which exists; null where the backend has no usual file and the configuration names none.
  const char *model_file;
  // A folder where the backend may keep what it made of the files, made if it is not there; null for none.
  const char *derived_directory;
  // The device to load onto.
  RoundhouseDeviceKind device_kind;
  // Its number.
  uint32_t device_id;
  // The largest batch; 0 where the tensors have no batch dimension of the server's.
  uint32_t max_batch_size;
  // The instances that will be made, as far as it is known; 0 if not.
  uint32_t instance_count;
  // The inputs in the configuration; none where it leaves them to the model.
  const struct RoundhouseTensorInfo *inputs;
  // How many there are.
  size_t input_count;
  // The outputs in the configuration; none where it leaves them to the model.
  const struct RoundhouseTensorInfo *outputs;
  // How many there are.
  size_t output_count;
  // The configuration's parameters, by key.
  const struct RoundhouseParameter *parameters;
  // How many there are.
  size_t parameter_count;
} RoundhouseLoadRequest;

// What a loaded model takes and gives. What its pointers point to lives as long as the model.
typedef struct RoundhouseModelInfo {
  // The inputs.
  const struct RoundhouseTensorInfo *inputs;
  // How many there are.
  size_t input_count;
  // The outputs, at least one.
  const struct RoundhouseTensorInfo *outputs;
  // How many there are.
  size_t output_count;
  // [`MODEL_KEEPS_FILES`] or 0.
  uint32_t flags;
  // 0.
  uint32_t reserved;
} RoundhouseModelInfo;

// A tensor that a request brings, borrowed for the call. It lies in host memory, at a multiple of its element's size.
typedef struct RoundhouseInput {
  // Its place among [`RoundhouseModelInfo::inputs`].
  size_t index;
  // Its elements, dense and in row-major order.
  const void *data;
  // Their bytes.
  size_t bytes;
  // Its dimensions.
  const int64_t *dims;
  // How many there are.
  size_t rank;
  // The type of its elements: that of the model's input.
  RoundhouseDataType data_type;
  // 0.
  uint32_t reserved;
} RoundhouseInput;

// A tensor that a run gives. It stays as it is until `release` is called with its owner, and lies in host memory.
typedef struct RoundhouseOutput {
  // What `release` is called with, once. Null for a tensor that needs none.
  void *owner;
  // Its elements, dense and in row-major order.
  const void *data;
  // Their bytes.
  size_t bytes;
  // Its dimensions.
  const int64_t *dims;
  // How many there are.
  size_t rank;
  // The type of its elements.
  RoundhouseDataType data_type;
  // 0.
  uint32_t reserved;
} RoundhouseOutput;

// What a loaded model holds on its device.
typedef struct RoundhouseModelMemory {
  // How much.
  uint64_t bytes;
  // [`MEMORY_EXACT`] or [`MEMORY_RUNS`].
  int32_t kind;
  // 0.
  uint32_t reserved;
} RoundhouseModelMemory;

// What the backend's own allocator says of a device.
typedef struct RoundhouseDeviceMemory {
  // Bytes that tensors and weights take.
  uint64_t allocated;
  // Bytes that it took from the device, the free ones it keeps included.
  uint64_t reserved;
} RoundhouseDeviceMemory;

// A backend. The first three fields stay what they are in every version.
typedef struct RoundhouseBackend {
  // The bytes of this struct, as the backend knows it.
  size_t struct_size;
  // The version of the ABI that it was built against.
  uint32_t abi_major;
  // The version of the ABI that it was built against.
  uint32_t abi_minor;
  // What `backend` is in `config.pbtxt`: the NAME of `libroundhouse_NAME.so`.
  const char *name;
  // What the backend is, with versions, for the log; may be null.
  const char *description;
  // The file in a version folder that is loaded where the configuration names none; null or empty for no file.
  const char *default_model_file;
  // The keys of `parameters` that mean something to the backend.
  const char *const *parameters;
  // How many there are.
  size_t parameter_count;
  // Called once, before all others. Where it fails the backend is unavailable, and its text is the reason.
  RoundhouseStatus (*initialize)(const struct RoundhouseHost *host, struct RoundhouseError *error);
  // Loads a model. Minutes are possible; other models run and load meanwhile.
  RoundhouseStatus (*load)(const struct RoundhouseLoadRequest *request,
                           struct RoundhouseModel **model,
                           struct RoundhouseError *error);
  // Says what a model takes and gives.
  RoundhouseStatus (*describe)(const struct RoundhouseModel *model,
                               struct RoundhouseModelInfo *info,
                               struct RoundhouseError *error);
  // Makes an instance, which shares the model's weights where the backend can.
  RoundhouseStatus (*instantiate)(struct RoundhouseModel *model,
                                  struct RoundhouseInstance **instance,
                                  struct RoundhouseError *error);
  // Runs an instance: `inputs` in any order, optional ones left out; for each of the `wanted` places among the model's
  // outputs one of `outputs`, in that order. Where it fails it has given nothing that is to be released.
  RoundhouseStatus (*infer)(struct RoundhouseInstance *instance,
                            const struct RoundhouseInput *inputs,
                            size_t input_count,
                            const size_t *wanted,
                            struct RoundhouseOutput *outputs,
                            size_t output_count,
                            struct RoundhouseError *error);
  // Takes back an output by its owner.
  void (*release)(void *owner);
  // Ends an instance.
  void (*end_instance)(struct RoundhouseInstance *instance);
  // Ends a model, whose instances have ended, and gives its memory back.
  void (*unload)(struct RoundhouseModel *model);
  // What a model holds now. Cheap. Null where the backend cannot tell.
  RoundhouseStatus (*model_memory)(const struct RoundhouseModel *model,
                                   struct RoundhouseModelMemory *memory);
  // What the backend's allocator holds on a device. Null where it has none of its own.
  RoundhouseStatus (*device_memory)(RoundhouseDeviceKind device_kind,
                                    uint32_t device_id,
                                    struct RoundhouseDeviceMemory *memory);
  // Gives the device what the backend's allocator keeps without using it. Null where there is nothing to give.
  void (*empty_cache)(RoundhouseDeviceKind device_kind, uint32_t device_id);
} RoundhouseBackend;

// The function that a backend exports. It may be called more than once and returns the same table.
typedef const struct RoundhouseBackend *(*RoundhouseEntry)(void);

#endif  /* ROUNDHOUSE_BACKEND_H */
