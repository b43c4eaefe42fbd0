"""Why an answer of ours differs from Triton's. Each reason says in which cases it counts, and where in the answer."""

import fnmatch
import re
from dataclasses import dataclass
from typing import Callable


@dataclass(frozen=True, eq=False)
class Reason:
    """`cases` and `places` are patterns as in a shell. Each case must differ, unless the reason `is_general`: then one."""

    name: str
    text: str
    cases: tuple
    places: tuple = ("*",)
    when: Callable = lambda theirs, ours: True
    is_general: bool = False
    is_listed: bool = True

    def covers(self, case):
        return any(fnmatch.fnmatchcase(case, pattern) for pattern in self.cases)

    def explains(self, case, place, theirs, ours):
        return (
            self.covers(case)
            and any(fnmatch.fnmatchcase(place, pattern) for pattern in self.places)
            and self.when(theirs, ours)
        )

    def gone(self, cases, rows):
        """What this reason was for and does not occur any more."""
        seen = {case for case, *_ in rows}
        if self.is_general:
            return [] if seen else [f"nowhere: {self.name}"]
        unused = [pattern for pattern in self.cases if not any(fnmatch.fnmatchcase(case, pattern) for case in seen)]
        equal = [case for case in cases if self.covers(case) and case not in seen]
        return [f"{name}: {self.name}" for name in [*unused, *equal]]


NOTHING = "nothing"


def reason(name, text, *cases, places=("*",), when=None, is_listed=True):
    """Without cases it's about all of them."""
    return Reason(name, text, cases or ("*",), places, when or (lambda theirs, ours: True), not cases, is_listed)


def outcome(theirs, ours):
    """That Triton's outcome begins with one of these, and ours."""
    theirs, ours = ((begins,) if isinstance(begins, str) else begins for begins in (theirs, ours))

    def when(one, other):
        # What ended has no outcome to tell.
        one, other = (value if isinstance(value, str) else str(value.get("status")) for value in (one, other))
        return one.startswith(theirs) and other.startswith(ours)

    return when


def without_id(text):
    return re.sub(r"^\[request id: [^]]*\] ", "", text)


def are_texts(theirs, ours):
    return isinstance(theirs, str) and isinstance(ours, str) and NOTHING not in (theirs, ours)


ANSWER = ("answer", "*.answer")
TEXT = ("*error", "*details", "*error_message")
GOOD = ("200", "OK")
WRONG = ("400", "INVALID_ARGUMENT")

# The first that fits counts.
REASONS = [
    reason(
        "Triton ends",
        "The request ends Triton, or the process of its Python backend that runs the model. Here it is refused.",
        places=("*",),
        when=lambda theirs, ours: isinstance(theirs, str) and theirs.endswith("ended"),
    ),
    reason(
        "Other backends",
        "The models are of Triton's Python backend there, and of `identity`, `repeat` and `onnxruntime` here.",
        places=("*platform", "*backend", "*default_model_filename"),
        is_listed=False,
    ),
    reason(
        "The server's own document",
        "It is another server, in another version; it has extensions more and says which backends work.",
        "http/route/GET /v2",
        "grpc/document/ServerMetadata",
        places=("*name", "*version", "*extensions", "*extensions.*", "*backends"),
    ),
    reason(
        "Codes of errors",
        "Every error of HTTP has a member `code` beside `error`, a word for programs.",
        places=("*.code",),
        when=lambda theirs, ours: theirs == NOTHING and ours.islower(),
        is_listed=False,
    ),
    reason(
        "Errors say that they are JSON",
        "Every error's body is JSON and its content type says so. Triton calls some of them plain text.",
        places=("type", "*.type"),
        when=lambda theirs, ours: (theirs, ours) == ("text/plain", "application/json"),
        is_listed=False,
    ),
    reason(
        "Empty bodies are no JSON",
        "An answer without a body has the content type of health answers; Triton calls some of them JSON.",
        places=("type", "*.type"),
        when=lambda theirs, ours: (theirs, ours) == ("application/json", "text/plain"),
        is_listed=False,
    ),
    reason(
        "FP16 and BF16 have a form in JSON",
        "They are plain numbers in JSON, both ways; Triton refuses them.",
        when=lambda theirs, ours: "via JSON is not supported" in str(theirs),
    ),
    reason(
        "Integers keep their value",
        "A number out of the range of its type is refused. Triton cuts it and computes with what is left.",
        "http/types/*/one * its range",
        places=ANSWER,
        when=outcome(("200", "500"), "400"),
    ),
    reason(
        "Loads that fail",
        "The status says whose fault it is, 400 for a wrong configuration and 404 for a model that is not there, and the text why. "
        "Triton says 500 and that it failed to poll.",
        places=ANSWER,
        when=outcome(
            ("500 failed to load", "INTERNAL failed to load"),
            ("400", "404", "501", "503", "INVALID", "NOT_FOUND", "UNIMPL", "UNAVAIL"),
        ),
    ),
    reason(
        "Who is at fault",
        "What is wrong with the request is 400 (gRPC: `INVALID_ARGUMENT`), whatever it is. Triton calls much of it 500 or `INTERNAL`, and "
        "an unknown log format 503.",
        places=ANSWER,
        when=outcome(("500", "503", "INTERNAL Unable to parse request"), WRONG),
    ),
    reason(
        "Request ids in texts",
        "Errors about the inputs, outputs and sequence of a request name its id in front; Triton does so in some of them.",
        places=TEXT,
        when=lambda theirs, ours: are_texts(theirs, ours) and without_id(theirs) == without_id(ours),
    ),
    reason(
        "Own words",
        "The same refusal in words that name the input, the numbers, the limit or the mend.",
        places=(*TEXT, "*reason"),
        when=are_texts,
    ),
    # ---- HTTP
    reason(
        "A list of models",
        "`GET /v2/models` lists the models of the repository. Triton has no such route.",
        "http/route/* /v2/models",
    ),
    reason(
        "Routes with a repository's name",
        "They are not offered, whatever the method; Triton looks at the method first.",
        *(
            f"http/route/{method} /v2/repository/r/models/nowhere/{end}"
            for method in ("GET", "PUT", "DELETE", "OPTIONS")
            for end in ("load", "unload")
        ),
    ),
    reason(
        "No change at all",
        "Settings that are posted without a body change nothing and are answered as they are.",
        "http/route/POST /v2/trace/setting",
        "http/route/POST /v2/models/wide/trace/setting",
        "http/route/POST /v2/logging",
        "http/settings/trace*/an empty body",
    ),
    reason(
        "Names in paths",
        "A path is percent-decoded; a version beyond all numbers is one that is not there.",
        "http/path//v2/models/w%69de",
        "http/path//v2/models/wide/versions/99999999999999999999",
    ),
    reason(
        "Ambiguous and endless JSON",
        "A member that is there twice, and nesting over 100 deep, are refused.",
        "http/body/a member twice",
        "http/body/nested 200 deep",
    ),
    reason(
        "Limits on names",
        "A request's id has at most 1024 bytes.",
        "http/infer/id of 10,000 letters",
    ),
    reason(
        "Compressed requests",
        "`generate` takes them too, an empty `Content-Encoding` is none, and a body that is cut short is refused.",
        "http/generate*/compressed",
        "http/compressed request/empty",
        "http/compressed request/gzip cut short",
    ),
    reason(
        "Batches of no items",
        "An input of shape [0, n] is answered with outputs of that shape, as where there are no batches. Triton misses the bytes of one item.",
        "http/shape/batched [[]0, 4[]]",
        "http/shape/preferred [[]0, 4[]]",
        "grpc/shape/batched [[]0, 4[]]",
    ),
    reason(
        "Required inputs",
        "An input that is not optional must be there. Triton counts only how many there are.",
        "http/optional/only it",
    ),
    reason(
        "Outputs that are wanted",
        "One that is asked for twice is refused, and so is a classification into no classes. `binary_data_output` is for every output that "
        "does not say otherwise, and an empty binary output is binary all the same.",
        "http/outputs/twice",
        "http/outputs/all binary but one",
        "http/classification/0",
        "http/binary/empty tensor",
    ),
    reason(
        "Answers of generate",
        "Where there is not exactly one answer the status is 500, not 200.",
        "http/generate/decoupled, three answers",
        "http/generate/decoupled, no answer",
    ),
    reason(
        "Errors of generate_stream",
        "What is found wrong once the stream is prepared comes as an event, with the status of an error. Triton has both forms.",
        "http/generate_stream/one missing",
        "http/generate_stream/empty",
    ),
    # ---- gRPC
    reason(
        "Empty names",
        "A call without a model's name is a wrong call, not one for a model that is not there.",
        "grpc/document/ModelMetadata/",
        "grpc/document/ModelConfig/",
        "grpc/bytes/*an unknown field",
        "grpc/infer/no name",
        "grpc/infer/nothing",
    ),
    reason(
        "Version -1",
        "Over gRPC it means the latest one, as in Triton's own configuration and C API.",
        "grpc/document/version -1",
        "grpc/document/ready of version -1",
        "grpc/infer/version -1",
    ),
    reason(
        "Health of models",
        "grpc.health.v1 knows models by name and says `NOT_FOUND` of others, as its contract has it. Triton says that all is well.",
        "grpc/health/nowhere",
    ),
    reason(
        "More contents than inputs",
        "Contents that belong to no input are refused.",
        "grpc/infer/raw contents too much",
    ),
    reason(
        "Negative timeouts",
        "They are refused over gRPC, as over HTTP.",
        "grpc/parameters*/timeout is negative",
    ),
    reason(
        "Streams that end with an error",
        "With the metadata `triton_grpc_error` every error ends the call, those too that are found before the model runs.",
        "grpc/stream/errors end it, unknown model",
        "grpc/stream/errors end it, wrong input",
    ),
    reason(
        "Empty final responses",
        "They name the version that answered, as the others do.",
        "grpc/decoupled/* with a final response",
        places=("*.model_version",),
    ),
    # ---- Sequences
    reason(
        "Ids of sequences",
        "Ids of another kind than the model's are refused: a text for a number, a negative number. Triton takes something else for it.",
        "http/sequence/direct/a text",
        "http/sequence/oldest/a text",
        "grpc/sequence/direct/a text",
        "grpc/sequence/oldest/a text",
        "grpc/sequence/direct/a negative id",
        "grpc/sequence/oldest/a negative id",
    ),
    reason(
        "Texts as ids of sequences",
        "They work with batches too. Triton hands its Python backend a text with the wrong number of elements. One that is too long is 400, not 501.",
        "http/sequence/lettered/a text",
        "http/sequence/lettered/129 letters",
        "http/sequence/lettered/not ASCII",
        "grpc/sequence/lettered/a text",
        "grpc/sequence/lettered/129 letters",
    ),
    # ---- Shared memory, settings
    reason(
        "Regions that begin inside a page",
        "A region may begin at any offset, since nothing is mapped. In Triton the offset must be a multiple of the page.",
        "http/shared/offset",
    ),
    reason(
        "Regions over gRPC",
        "Whatever is wrong with a region is `INVALID_ARGUMENT`, the 400 of HTTP; one must have a name, since the empty one stands for all; "
        "and an input that lies in a region has no contents besides.",
        "grpc/shared/register twice",
        "grpc/shared/register/no name",
        "grpc/shared/output that does not fit",
        "grpc/shared/input with raw contents too",
    ),
    reason(
        "Where outputs are",
        "An output in shared memory says so in its parameters, as the protocol has it.",
        "http/shared/both",
        "http/shared/output",
        "http/shared/output with room to spare",
        places=("*.outputs.0.parameters",),
    ),
    reason(
        "CUDA shared memory",
        "It is not offered.",
        "http/shared/CUDA/64 zeros",
        "grpc/shared/CUDA/register",
    ),
    reason(
        "Settings that are not there",
        "Unknown settings and levels, numbers out of range, and what is no object are refused, as is a change of the mode. Triton ignores or wraps them.",
        *(
            f"http/settings/{name}/{case}"
            for name in ("trace", "trace of a model")
            for case in (
                "rate is negative",
                "level is unknown",
                "level is in small letters",
                "MIN",
                "MAX",
                "unknown",
                "mode",
                "an array",
            )
        ),
        *(
            f"grpc/settings/{name}/{case}"
            for name in ("trace", "trace of a model")
            for case in ("level is unknown", "unknown", "mode")
        ),
        "grpc/settings/log/unknown",
        "http/settings/log/unknown",
        "http/settings/log/an array",
        "http/repository/index/an array",
    ),
    reason(
        "Settings of models that are not in memory",
        "A model's trace settings are kept whether it is loaded or not.",
        "http/settings/trace of a model/not loaded",
    ),
    # ---- Queues, statistics, repository
    reason(
        "Full queues and timeouts",
        "A full queue is 429 and a timeout 504; Triton answers 503 to both. A timeout that comes with a request is for the whole answer "
        "and counts whatever the policy allows; in Triton it is for the wait in the queue alone.",
        "http/queue/*",
        places=ANSWER,
    ),
    reason(
        "Statistics",
        "Requests that are refused count as failed; Triton counts those alone that failed later. Our backend `identity` takes no time.",
        "http/statistics/after*",
        "http/statistics/of a version",
        "http/statistics/of a sequence",
    ),
    reason(
        "What an index says of failed loads",
        "The version, its state and why it failed. Triton says so only where the configuration could be read.",
        "http/repository/index",
        "http/repository/index/all",
        "http/repository/index/more members",
        "http/repository/broken/torn",
        "http/repository/broken/unknown_field",
        "http/repository/broken/negative",
        "http/repository/broken/too_preferred",
        "http/repository/broken/levels",
        "http/repository/broken/versionless",
        "http/repository/broken/both_schedulers",
        places=("json", "*json", "*.version", "*.state", "*.reason"),
    ),
    reason(
        "Inputs that are there twice",
        "Such a configuration is refused. Triton loads it and answers no request.",
        "*/repository/broken/twice",
    ),
    reason(
        "Names in configurations",
        "The folder gives a model its name, and another one in `config.pbtxt` does no harm. Triton refuses to load it.",
        "*/repository/broken/renamed",
    ),
    reason(
        "Readiness",
        "A model that cannot be loaded does not make the server unready.",
        "http/repository/ready after failed loads",
    ),
    reason(
        "Parameters of an unload",
        "Those that mean nothing are refused.",
        *(
            f"http/repository/unload/{case}"
            for case in (
                "parameters are no object",
                "unknown parameter",
                "config is no text",
                "config is no JSON",
                "config is empty",
                "a file without config",
            )
        ),
    ),
    reason(
        "Files in a load",
        "They are not taken, over HTTP and gRPC.",
        "grpc/repository/load/a file that is a text",
    ),
    reason(
        "A load without a configuration",
        "It goes back to what the repository says. Triton stays with the configuration of the load before.",
        "http/repository/load with another configuration",
    ),
]
