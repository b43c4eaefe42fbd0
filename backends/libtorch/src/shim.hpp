// What the parts of the shim share.

#pragma once

#include <c10/core/Stream.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <exception>
#include <stdexcept>

namespace rh {

constexpr size_t ERROR_BYTES = 2048;

// Kinds of failures, as the Rust side knows them.
enum { OK = 0, FAILED = 1, WRONG_TENSORS = 2, OUT_OF_MEMORY = 3 };

template <class Work>
int guarded(char* error, Work work) {
    const auto say = [error](int kind, const char* text) {
        std::snprintf(error, ERROR_BYTES, "%s", text);
        return kind;
    };
    try {
        work();
        return OK;
    } catch (const c10::OutOfMemoryError& caught) {
        return say(OUT_OF_MEMORY, caught.what_without_backtrace());
    } catch (const c10::Error& caught) {
        return say(FAILED, caught.what_without_backtrace());
    } catch (const std::invalid_argument& caught) {
        return say(WRONG_TENSORS, caught.what());
    } catch (const std::exception& caught) {
        return say(FAILED, caught.what());
    } catch (...) {
        return say(FAILED, "an exception that is none of C++'s own");
    }
}

// Before a run on a stream: has torch take now, for no model, what it keeps for the thread and the stream.
void settle_workspaces(const c10::Stream& stream);

// A stream for an instance: the server's, or one of torch's own where the server has none.
c10::Stream stream_on(c10::Device device);

}  // namespace rh
