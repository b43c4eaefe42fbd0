// A backend in C against the header alone: output 0 is input 0 with its sign changed. With a BROKEN it breaks its word, each
// number in another way; the tests of the loader build one of each.

#include "roundhouse_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef BROKEN
#define BROKEN 0
#endif

enum {
    SOUND,
    OTHER_MAJOR,
    NEWER_MINOR,
    SHORT_TABLE,
    NO_TABLE,
    NO_INFER,
    NO_NAME,
    FAILS_TO_START,
    NO_MODEL,
    NO_INSTANCE,
    NO_OUTPUTS_DESCRIBED,
    OUTPUT_LEFT_OUT,
    OUTPUT_NOWHERE,
    OUTPUT_OF_NEGATIVE_SIZE,
    ODD_STATUS,
    TEXT_WITHOUT_END
};

static const int64_t any_size[] = {-1};
static const RoundhouseTensorInfo inputs[] = {{"x", any_size, 1, ROUNDHOUSE_FP32, 0}};
static const RoundhouseTensorInfo outputs[] = {{"y", any_size, 1, ROUNDHOUSE_FP32, 0}};

typedef struct {
    int64_t dims[1];
    float data[];
} Answer;

static int32_t fail(RoundhouseError *error, int32_t kind, const char *text) {
    snprintf(error->message, sizeof error->message, "%s", text);
    return kind;
}

static int32_t initialize(const RoundhouseHost *host, RoundhouseError *error) {
    if (host->struct_size < sizeof *host || host->abi_major != ROUNDHOUSE_ABI_MAJOR)
        return fail(error, ROUNDHOUSE_FAILED, "another host than was compiled for");
    if (BROKEN == FAILS_TO_START) return fail(error, ROUNDHOUSE_NOT_READY, "its licence has run out");
    host->log(ROUNDHOUSE_LOG_INFO, "negate starts");
    return ROUNDHOUSE_OK;
}

static int32_t load(const RoundhouseLoadRequest *request, RoundhouseModel **model, RoundhouseError *error) {
    for (size_t at = 0; at < request->parameter_count; at++)
        if (strcmp(request->parameters[at].key, "refuse") == 0)
            return fail(error, ROUNDHOUSE_INVALID_ARGUMENT, request->parameters[at].value);
    if (BROKEN == NO_MODEL) return ROUNDHOUSE_OK;
    *model = malloc(1);
    return ROUNDHOUSE_OK;
}

static int32_t describe(const RoundhouseModel *model, RoundhouseModelInfo *info, RoundhouseError *error) {
    (void)model, (void)error;
    info->inputs = inputs, info->input_count = 1;
    info->outputs = outputs, info->output_count = BROKEN == NO_OUTPUTS_DESCRIBED ? 0 : 1;
    return ROUNDHOUSE_OK;
}

static int32_t instantiate(RoundhouseModel *model, RoundhouseInstance **instance, RoundhouseError *error) {
    (void)error;
    if (BROKEN != NO_INSTANCE) *instance = (RoundhouseInstance *)model;
    return ROUNDHOUSE_OK;
}

static int32_t infer(RoundhouseInstance *instance, const RoundhouseInput *given, size_t given_count,
                     const size_t *wanted, RoundhouseOutput *room, size_t room_count, RoundhouseError *error) {
    (void)instance, (void)wanted;
    if (given_count != 1) return fail(error, ROUNDHOUSE_INVALID_ARGUMENT, "expected one input");
    if (BROKEN == ODD_STATUS) return -7;
    if (BROKEN == TEXT_WITHOUT_END) return memset(error->message, 'x', sizeof error->message), ROUNDHOUSE_FAILED;
    if (BROKEN == OUTPUT_LEFT_OUT) return ROUNDHOUSE_OK;
    size_t count = given->bytes / sizeof(float);
    for (size_t at = 0; at < room_count; at++) {
        Answer *answer = malloc(sizeof *answer + given->bytes);
        if (answer == NULL) return fail(error, ROUNDHOUSE_FAILED, "no memory");
        answer->dims[0] = BROKEN == OUTPUT_OF_NEGATIVE_SIZE ? -1 : (int64_t)count;
        for (size_t i = 0; i < count; i++) answer->data[i] = -((const float *)given->data)[i];
        room[at].owner = answer;
        room[at].data = BROKEN == OUTPUT_NOWHERE ? NULL : answer->data;
        room[at].bytes = given->bytes;
        room[at].dims = answer->dims, room[at].rank = 1;
        room[at].data_type = ROUNDHOUSE_FP32;
    }
    return ROUNDHOUSE_OK;
}

static void end_instance(RoundhouseInstance *instance) { (void)instance; }

static void unload(RoundhouseModel *model) { free(model); }

static const char *const parameters[] = {"refuse"};

static const RoundhouseBackend table = {
    .struct_size = BROKEN == SHORT_TABLE ? 24 : sizeof(RoundhouseBackend),
    .abi_major = ROUNDHOUSE_ABI_MAJOR + (BROKEN == OTHER_MAJOR),
    .abi_minor = ROUNDHOUSE_ABI_MINOR + (BROKEN == NEWER_MINOR),
    .name = BROKEN == NO_NAME ? NULL : "negate",
    .description = "negate, in C",
    .parameters = parameters,
    .parameter_count = 1,
    .initialize = initialize,
    .load = load,
    .describe = describe,
    .instantiate = instantiate,
    .infer = BROKEN == NO_INFER ? NULL : infer,
    .release = free,
    .end_instance = end_instance,
    .unload = unload,
};

#ifndef NO_ENTRY
const RoundhouseBackend *roundhouse_backend(void) { return BROKEN == NO_TABLE ? NULL : &table; }
#endif
