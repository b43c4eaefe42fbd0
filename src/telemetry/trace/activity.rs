//! What a trace says that happened, by Triton's names.

/// A moment in the life of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activity {
    /// The request's head is there (HTTP).
    HttpRecvStart,
    /// Its body is there (HTTP).
    HttpRecvEnd,
    /// The answer is handed to the connection (HTTP).
    HttpSendStart,
    /// The connection has taken all of it (HTTP).
    HttpSendEnd,
    /// The call is there, its message is not (gRPC).
    GrpcWaitreadStart,
    /// Its message is there (gRPC).
    GrpcWaitreadEnd,
    /// An answer is handed to the stream (gRPC).
    GrpcSendStart,
    /// The stream has taken it (gRPC).
    GrpcSendEnd,
    /// The answer is there.
    InferResponseComplete,
    /// The model's queue or its instance is asked.
    RequestStart,
    /// It waits.
    QueueStart,
    /// An instance has it.
    ComputeStart,
    /// Its inputs are where the model wants them.
    ComputeInputEnd,
    /// The model is done; outputs are taken.
    ComputeOutputStart,
    /// The outputs are there.
    ComputeEnd,
    /// It is answered, or has failed.
    RequestEnd,
    /// An input as it came.
    TensorQueueInput,
    /// An input as the model gets it.
    TensorBackendInput,
    /// An output as the model gave it.
    TensorBackendOutput,
}

impl Activity {
    /// Its name in traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HttpRecvStart => "HTTP_RECV_START",
            Self::HttpRecvEnd => "HTTP_RECV_END",
            Self::HttpSendStart => "HTTP_SEND_START",
            Self::HttpSendEnd => "HTTP_SEND_END",
            Self::GrpcWaitreadStart => "GRPC_WAITREAD_START",
            Self::GrpcWaitreadEnd => "GRPC_WAITREAD_END",
            Self::GrpcSendStart => "GRPC_SEND_START",
            Self::GrpcSendEnd => "GRPC_SEND_END",
            Self::InferResponseComplete => "INFER_RESPONSE_COMPLETE",
            Self::RequestStart => "REQUEST_START",
            Self::QueueStart => "QUEUE_START",
            Self::ComputeStart => "COMPUTE_START",
            Self::ComputeInputEnd => "COMPUTE_INPUT_END",
            Self::ComputeOutputStart => "COMPUTE_OUTPUT_START",
            Self::ComputeEnd => "COMPUTE_END",
            Self::RequestEnd => "REQUEST_END",
            Self::TensorQueueInput => "TENSOR_QUEUE_INPUT",
            Self::TensorBackendInput => "TENSOR_BACKEND_INPUT",
            Self::TensorBackendOutput => "TENSOR_BACKEND_OUTPUT",
        }
    }

    /// Whether it is the front end's and not a model's: of the request as a whole, whatever models answer it.
    #[must_use]
    pub const fn is_of_the_front(self) -> bool {
        matches!(
            self,
            Self::HttpRecvStart
                | Self::HttpRecvEnd
                | Self::HttpSendStart
                | Self::HttpSendEnd
                | Self::GrpcWaitreadStart
                | Self::GrpcWaitreadEnd
                | Self::GrpcSendStart
                | Self::GrpcSendEnd
                | Self::InferResponseComplete
        )
    }

    /// Whether it is the runtime's.
    #[must_use]
    pub const fn is_of_compute(self) -> bool {
        matches!(self, Self::ComputeStart | Self::ComputeInputEnd | Self::ComputeOutputStart | Self::ComputeEnd)
    }
}
