// What tch lacks: the executor and inference modes of TorchScript, freezing, the argument names of `forward`, outputs that
// are tuples, lists and dictionaries, and packages of AOTInductor; what it lacks of GPUs is in device.cpp. No exception leaves
// a function: each returns 0, or 1 after writing a text to `error`, which has room for 2048 bytes.

#include <ATen/ATen.h>
#include <ATen/DynamicLibrary.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "shim.hpp"

namespace {

using rh::guarded;

c10::Device device_of(int index) {
    return index < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
}

// Kinds of arguments of `forward`.
enum { TENSOR = 0, OPTIONAL_TENSOR = 1, TENSOR_DICT = 2, OTHER = 3 };

struct Argument {
    std::string name;
    std::string type;
    int kind;
    std::optional<at::IValue> usual;
    // Of a traced module: type and sizes of the tensor that it was traced with.
    std::optional<at::ScalarType> scalar_type;
    std::vector<int64_t> sizes;
};

int kind_of(const c10::TypePtr& type) {
    if (type->isSubtypeOf(*c10::TensorType::get())) return TENSOR;
    if (const auto optional = type->cast<c10::OptionalType>())
        return optional->getElementType()->isSubtypeOf(*c10::TensorType::get()) ? OPTIONAL_TENSOR : OTHER;
    if (const auto dict = type->cast<c10::DictType>()) {
        const bool has_text = dict->getKeyType()->kind() == c10::TypeKind::StringType;
        return has_text && dict->getValueType()->isSubtypeOf(*c10::TensorType::get()) ? TENSOR_DICT : OTHER;
    }
    return OTHER;
}

// How many tensors a package takes: its library knows, and the runner, which passes on whatever it is given, does not ask.
struct Counts : torch::inductor::AOTIModelContainerRunner {
    struct Found {
        size_t inputs;
    };
    static Found of(torch::inductor::AOTIModelContainerRunner& runner) {
        auto& library = runner.*&Counts::model_so_;
        const auto count = reinterpret_cast<decltype(&AOTInductorModelContainerGetNumInputs)>(
            library->sym("AOTInductorModelContainerGetNumInputs"));
        Found found{};
        TORCH_CHECK(count(runner.*&Counts::container_handle_, &found.inputs) == 0, "the package does not tell its inputs");
        return found;
    }
};

}  // namespace

extern "C" {

struct rh_options {
    int32_t device;            // -1 for the CPU, else CUDA's number
    int32_t inference_mode;    // else only gradients are off
    int32_t optimized;         // the profiling executor optimises
    int32_t optimize;          // 0 nothing, 1 freeze, 2 optimize_for_inference
    int32_t threads;           // inside one operator
    int32_t restore_shapes;    // read what a traced module was traced with
};

struct rh_module {
    rh_options options;
    torch::jit::Module module;
    std::optional<torch::jit::Method> forward;
    std::vector<Argument> arguments;
    bool keeps_state;
    // In the place of the module.
    std::unique_ptr<torch::inductor::AOTIModelPackageLoader> package;
};

struct rh_instance {
    const rh_module* module;
    std::optional<c10::Stream> stream;
};

struct rh_input {
    const void* data;
    const int64_t* dims;
    size_t rank;
    int32_t scalar_type;
    int32_t argument;  // its place among forward's, or -1 for a dictionary
    const char* name;  // in a dictionary
};

// Which part of what a module gave is wanted: the index-th of a tuple or list, or what a dictionary has under the name.
struct rh_wanted {
    const char* name;
    int64_t index;
};

int rh_load(const char* path, const rh_options* options, rh_module** made, char* error) {
    return guarded(error, [&] {
        const auto device = device_of(options->device);
        TORCH_CHECK(device.is_cpu() || at::globalContext().hasCUDA(), "this libtorch has no CUDA, or there is no GPU");
        torch::jit::ExtraFilesMap none;
        auto unit = std::make_shared<torch::jit::CompilationUnit>();
        auto module = torch::jit::import_ir_module(unit, path, device, none, false, options->restore_shapes != 0);
        module.eval();
        if (options->optimize == 1) module = torch::jit::freeze(module);
        // It freezes as well.
        if (options->optimize == 2) module = torch::jit::optimize_for_inference(module);
        auto fresh = std::make_unique<rh_module>(rh_module{*options, module, module.find_method("forward"), {}, false, nullptr});
        TORCH_CHECK(fresh->forward.has_value(), "the module has no method forward");
        const auto& schema = fresh->forward->function().getSchema().arguments();
        const auto graph = fresh->forward->graph();
        for (size_t at = 1; at < schema.size(); at++) {
            Argument argument{schema[at].name(), schema[at].type()->str(), kind_of(schema[at].type()),
                              schema[at].default_value(), {}, {}};
            const auto type = at < graph->inputs().size() ? graph->inputs()[at]->type()->cast<c10::TensorType>() : nullptr;
            if (options->restore_shapes && type && type->scalarType() && type->sizes().concrete_sizes()) {
                argument.scalar_type = type->scalarType();
                argument.sizes = *type->sizes().concrete_sizes();
            }
            fresh->arguments.push_back(std::move(argument));
        }
        auto flat = graph->copy();
        torch::jit::Inline(*flat);
        fresh->keeps_state = !torch::jit::findAllNodes(*flat, c10::prim::SetAttr, true).empty();
        for (const auto kind : {c10::aten::append, c10::aten::insert, c10::aten::_set_item, c10::Symbol::aten("extend")})
            for (const auto* node : torch::jit::findAllNodes(*flat, kind, true))
                fresh->keeps_state |= node->input(0)->node()->kind() == c10::prim::GetAttr;
        *made = fresh.release();
    });
}

// Loads a package of AOTInductor, which so many instances run at a time. Its tensors have places and no names.
int rh_load_package(const char* path, const rh_options* options, size_t instances, rh_module** made, char* error) {
    return guarded(error, [&] {
        const auto device = device_of(options->device);
        const auto compiled_for = torch::inductor::AOTIModelPackageLoader::load_metadata_from_package(path, "model");
        const auto found = compiled_for.find("AOTI_DEVICE_KEY");
        const auto wanted = device.is_cpu() ? "cpu" : "cuda";
        if (found != compiled_for.end() && found->second != wanted)
            throw std::invalid_argument("it was compiled for " + found->second + ", and is to run on " + wanted + ": set the kind of instance_group");
        auto package = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path, "model", false, instances, device.index());
        const auto inputs = Counts::of(*package->get_runner()).inputs;
        auto fresh = std::make_unique<rh_module>(rh_module{*options, torch::jit::Module(), std::nullopt, {}, false, std::move(package)});
        for (size_t at = 0; at < inputs; at++)
            fresh->arguments.push_back({"INPUT__" + std::to_string(at), "Tensor", TENSOR, {}, {}, {}});
        *made = fresh.release();
    });
}

void rh_unload(rh_module* module) { delete module; }

size_t rh_argument_count(const rh_module* module) { return module->arguments.size(); }
const char* rh_argument_name(const rh_module* module, size_t at) { return module->arguments[at].name.c_str(); }
const char* rh_argument_type(const rh_module* module, size_t at) { return module->arguments[at].type.c_str(); }
int rh_argument_kind(const rh_module* module, size_t at) { return module->arguments[at].kind; }
int rh_argument_has_default(const rh_module* module, size_t at) { return module->arguments[at].usual.has_value(); }
int rh_keeps_state(const rh_module* module) { return module->keeps_state; }

// The tensor that an argument was traced with; -1 where that is not known.
int rh_argument_example(const rh_module* module, size_t at, const int64_t** dims, size_t* rank) {
    const auto& argument = module->arguments[at];
    if (!argument.scalar_type) return -1;
    *dims = argument.sizes.data(), *rank = argument.sizes.size();
    return static_cast<int>(*argument.scalar_type);
}

int rh_instantiate(const rh_module* module, rh_instance** made, char* error) {
    return guarded(error, [&] {
        auto fresh = std::make_unique<rh_instance>(rh_instance{module, std::nullopt});
        const auto device = device_of(module->options.device);
        if (device.is_cuda()) {
            fresh->stream = rh::stream_on(device);
        }
        *made = fresh.release();
    });
}

void rh_end_instance(rh_instance* instance) { delete instance; }

}  // extern "C"

namespace {

// The modes of a run, as long as it lives.
struct Modes {
    c10::InferenceMode inference;
    at::NoGradGuard no_gradients;
    torch::jit::GraphOptimizerEnabledGuard optimizing;
    c10::OptionalStreamGuard stream;

    explicit Modes(const rh_instance& instance)
        : inference(instance.module->options.inference_mode != 0),
          optimizing(instance.module->options.optimized != 0) {
        // The count belongs to the thread; MKL's is the process's.
        thread_local int threads = 0;
        if (threads != instance.module->options.threads) at::set_num_threads(threads = instance.module->options.threads);
        if (instance.stream) {
            stream.reset_stream(*instance.stream);
            rh::settle_workspaces(*instance.stream);
        }
    }
};

// A tensor over the bytes of a request, or on its way to the device.
at::Tensor tensor_of(const rh_input& input, c10::Device device, bool copied) {
    const auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(input.scalar_type));
    auto tensor = at::from_blob(const_cast<void*>(input.data), at::IntArrayRef(input.dims, input.rank), options);
    return !device.is_cpu() ? tensor.to(device) : copied ? tensor.clone() : tensor;
}

// What a package gives, as a tuple. It may write to what it is given, which others read too: it gets copies.
at::IValue run_package(const rh_instance& instance, const rh_input* inputs, size_t input_count) {
    const auto& module = *instance.module;
    std::vector<at::Tensor> given(module.arguments.size());
    for (size_t at = 0; at < input_count; at++)
        given.at(static_cast<size_t>(inputs[at].argument)) = tensor_of(inputs[at], device_of(module.options.device), true);
    for (const auto& tensor : given)
        if (!tensor.defined()) throw std::invalid_argument("the package needs all of its inputs");
    std::vector<at::Tensor> made;
    try {
        made = module.package->boxed_run(std::move(given), instance.stream ? instance.stream->native_handle() : nullptr);
    } catch (const c10::OutOfMemoryError&) {
        throw;
    } catch (const std::exception&) {
        // The compiled code tells here only that it failed.
        throw std::invalid_argument("the package refuses its inputs, most often for a shape or type other than it was compiled for: it wrote why to the server's standard error");
    }
    std::vector<at::IValue> values(std::make_move_iterator(made.begin()), std::make_move_iterator(made.end()));
    return c10::ivalue::Tuple::create(std::move(values));
}

at::IValue run(const rh_instance& instance, const rh_input* inputs, size_t input_count) {
    const auto& module = *instance.module;
    if (module.package) return run_package(instance, inputs, input_count);
    const auto device = device_of(module.options.device);

    std::vector<at::IValue> stack;
    stack.reserve(module.arguments.size() + 1);
    stack.emplace_back(module.module._ivalue());
    for (const auto& argument : module.arguments) stack.push_back(argument.usual.value_or(at::IValue()));
    std::optional<c10::Dict<std::string, at::Tensor>> dictionary;
    for (size_t at = 0; at < input_count; at++) {
        const auto& input = inputs[at];
        // What the module keeps must not lie in the request's memory.
        auto tensor = tensor_of(input, device, module.keeps_state);
        if (input.argument < 0) {
            if (!dictionary) dictionary.emplace();
            dictionary->insert(input.name, std::move(tensor));
        } else {
            stack[static_cast<size_t>(input.argument) + 1] = std::move(tensor);
        }
    }
    if (dictionary) stack[1] = std::move(*dictionary);

    module.forward->function().run(stack);
    return stack.empty() ? at::IValue() : stack.back();
}

}  // namespace

extern "C" {

// Runs forward. `outputs` takes owned tensors, dense and in host memory, one for each that is wanted.
int rh_infer(rh_instance* instance, const rh_input* inputs, size_t input_count, const rh_wanted* wanted, size_t count,
             at::Tensor** outputs, char* error) {
    return guarded(error, [&] {
        const Modes modes(*instance);
        const auto& module = *instance->module;
        const auto device = device_of(module.options.device);
        const auto given = run(*instance, inputs, input_count);

        const auto part = [&](const rh_wanted& want) -> at::IValue {
            const auto nth = [&](size_t size) {
                if (want.index < 0 || static_cast<size_t>(want.index) >= size)
                    throw std::invalid_argument("forward gives " + std::to_string(size) + " values, and one of place " +
                                                std::to_string(want.index) + " is configured");
                return static_cast<size_t>(want.index);
            };
            if (given.isTensor()) return nth(1), given;
            if (given.isTuple()) return given.toTupleRef().elements()[nth(given.toTupleRef().elements().size())];
            if (given.isList()) return given.toListRef()[nth(given.toListRef().size())];
            if (given.isGenericDict()) {
                std::string keys;
                for (const auto& entry : given.toGenericDict()) {
                    if (!entry.key().isString()) throw std::invalid_argument("forward gives a dictionary whose keys are no strings");
                    if (entry.key().toStringRef() == want.name) return entry.value();
                    keys += (keys.empty() ? "'" : ", '") + entry.key().toStringRef() + "'";
                }
                throw std::invalid_argument("forward gives a dictionary without '" + std::string(want.name) + "', it has " + keys);
            }
            throw std::invalid_argument("forward gives a " + given.tagKind() + ": only tensors, and tuples, lists and dictionaries of them, can be served");
        };
        std::vector<std::unique_ptr<at::Tensor>> taken;
        taken.reserve(count);
        for (size_t at = 0; at < count; at++) {
            const auto value = part(wanted[at]);
            if (!value.isTensor())
                throw std::invalid_argument("output '" + std::string(wanted[at].name) + "' is a " + value.tagKind() + ": only tensors can be served");
            auto tensor = value.toTensor();
            if (tensor.layout() != at::kStrided || tensor.is_quantized()) tensor = tensor.is_quantized() ? tensor.dequantize() : tensor.to_dense();
            tensor = tensor.to(at::kCPU).contiguous().resolve_conj().resolve_neg();
            // What lies in the request's own memory has to outlive it.
            for (size_t input = 0; device.is_cpu() && input < input_count; input++)
                if (tensor.defined() && tensor.numel() > 0 && tensor.storage().data() == inputs[input].data) {
                    tensor = tensor.clone();
                    break;
                }
            taken.push_back(std::make_unique<at::Tensor>(std::move(tensor)));
        }
        for (size_t at = 0; at < count; at++) outputs[at] = taken[at].release();
    });
}

// Runs forward and tells of each part of what it gives: the name that it is found by, its type, and its rank.
int rh_probe(rh_instance* instance, const rh_input* inputs, size_t input_count,
             void (*tell)(void*, const char*, int, size_t), void* whom, char* error) {
    return guarded(error, [&] {
        const Modes modes(*instance);
        const auto given = run(*instance, inputs, input_count);
        const auto tell_of = [&](const std::string& name, const at::IValue& value) {
            if (!value.isTensor())
                throw std::invalid_argument("output '" + name + "' is a " + value.tagKind() + ": only tensors can be served");
            const auto tensor = value.toTensor();
            tell(whom, name.c_str(), static_cast<int>(tensor.scalar_type()), static_cast<size_t>(tensor.dim()));
        };
        const auto numbered = [](size_t at) { return "OUTPUT__" + std::to_string(at); };
        if (given.isTuple()) {
            for (size_t at = 0; at < given.toTupleRef().elements().size(); at++) tell_of(numbered(at), given.toTupleRef().elements()[at]);
        } else if (given.isList()) {
            for (size_t at = 0; at < given.toListRef().size(); at++) tell_of(numbered(at), given.toListRef()[at]);
        } else if (given.isGenericDict()) {
            for (const auto& entry : given.toGenericDict()) {
                if (!entry.key().isString()) throw std::invalid_argument("forward gives a dictionary whose keys are no strings");
                tell_of(entry.key().toStringRef(), entry.value());
            }
        } else {
            tell_of(numbered(0), given);
        }
    });
}

int rh_scalar_type(const at::Tensor* tensor) { return static_cast<int>(tensor->scalar_type()); }

}  // extern "C"
