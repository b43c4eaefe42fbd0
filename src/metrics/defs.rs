//! The one table of metric families: name, kind, labels, stability, help.
//!
//! The `nv_*` names, units and labels are Triton's (docs/user_guide/metrics.md of triton-inference-server/server), so that
//! dashboards made for it keep working; the `roundhouse_*` ones are ours.

pub mod host;
pub mod sleep;

/// What Prometheus calls the type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while its series lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

/// Whether names and labels may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Kept; in the README.
    Stable,
    /// May change with a note.
    Experimental,
}

/// A family of series.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The name on the page.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The labels each series has.
    pub labels: &'static [&'static str],
    /// Whether it may change.
    pub stability: Stability,
    /// One sentence with the unit.
    pub help: &'static str,
}

const MODEL: &[&str] = &["model", "version"];
const TIER: &[&str] = &["tier", "device"];
const GPU: &[&str] = &["gpu_uuid"];

const fn family(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, kind, labels, stability: Stability::Stable, help }
}

/// Requests answered with a response.
pub const REQUEST_SUCCESS: Family = family(
    "nv_inference_request_success",
    Kind::Counter,
    MODEL,
    "Number of successful inference requests, all batch sizes",
);
/// Requests answered with an error.
pub const REQUEST_FAILURE: Family = family(
    "nv_inference_request_failure",
    Kind::Counter,
    &["model", "version", "reason"],
    "Number of failed inference requests: REJECTED (queue full or deadline), CANCELED, BACKEND, OTHER",
);
/// Inferences, a batch of n counted n times.
pub const INFERENCE_COUNT: Family =
    family("nv_inference_count", Kind::Counter, MODEL, "Number of inferences performed, a batch of n counts n times");
/// Executions of the model.
pub const EXECUTION_COUNT: Family =
    family("nv_inference_exec_count", Kind::Counter, MODEL, "Number of model executions performed");
/// From the request's arrival in the core to its answer.
pub const REQUEST_DURATION: Family = family(
    "nv_inference_request_duration_us",
    Kind::Counter,
    MODEL,
    "Cumulative inference request duration in microseconds",
);
/// Waiting in the queue.
pub const QUEUE_DURATION: Family = family(
    "nv_inference_queue_duration_us",
    Kind::Counter,
    MODEL,
    "Cumulative inference queuing duration in microseconds",
);
/// Preparing inputs.
pub const COMPUTE_INPUT_DURATION: Family = family(
    "nv_inference_compute_input_duration_us",
    Kind::Counter,
    MODEL,
    "Cumulative compute input duration in microseconds",
);
/// Running the model.
pub const COMPUTE_INFER_DURATION: Family = family(
    "nv_inference_compute_infer_duration_us",
    Kind::Counter,
    MODEL,
    "Cumulative compute inference duration in microseconds",
);
/// Extracting outputs.
pub const COMPUTE_OUTPUT_DURATION: Family = family(
    "nv_inference_compute_output_duration_us",
    Kind::Counter,
    MODEL,
    "Cumulative compute output duration in microseconds",
);
/// Requests that wait for an instance.
pub const PENDING_REQUESTS: Family = family(
    "nv_inference_pending_request_count",
    Kind::Gauge,
    MODEL,
    "Instantaneous number of requests waiting to be executed",
);
/// Requests answered from the response cache.
pub const CACHE_HITS: Family = family(
    "nv_cache_num_hits_per_model",
    Kind::Counter,
    MODEL,
    "Number of requests answered from the response cache; models with response_cache alone",
);
/// Requests whose answer was not in the response cache.
pub const CACHE_MISSES: Family = family(
    "nv_cache_num_misses_per_model",
    Kind::Counter,
    MODEL,
    "Number of requests whose answer was not in the response cache and was computed",
);
/// Finding answers.
pub const CACHE_HIT_DURATION: Family = family(
    "nv_cache_hit_duration_per_model",
    Kind::Counter,
    MODEL,
    "Cumulative duration of finding answers in the response cache, in microseconds",
);
/// Looking for answers that are not there, and keeping them.
pub const CACHE_MISS_DURATION: Family = family(
    "nv_cache_miss_duration_per_model",
    Kind::Counter,
    MODEL,
    "Cumulative duration of looking in vain into the response cache and of keeping the answer, in microseconds",
);
/// Memory of kept answers.
pub const RESPONSE_CACHE_BYTES: Family = family(
    "roundhouse_response_cache_bytes",
    Kind::Gauge,
    &[],
    "Host memory that kept answers take, in bytes; there where the server has a response cache",
);
/// How long the model's last load took.
pub const MODEL_LOAD_DURATION: Family =
    family("nv_model_load_duration_secs", Kind::Gauge, MODEL, "Duration of the model's load in seconds");
/// Loads by how they ended.
pub const LOADS: Family = family(
    "roundhouse_model_loads_total",
    Kind::Counter,
    &["outcome"],
    "Model loads by outcome: ok, failed, not_found (no such model), cancelled (nobody waited any more)",
);
/// Unloads.
pub const UNLOADS: Family = family(
    "roundhouse_model_unloads_total",
    Kind::Counter,
    &[],
    "Model unloads, counted when their memory is free again",
);
/// How long unloads take.
pub const UNLOAD_SECONDS: Family = family(
    "roundhouse_model_unload_seconds",
    Kind::Histogram,
    &[],
    "Duration of model unloads, from the decision until their memory is free, requests under way included, in seconds",
);
/// Models whose instances changed without a load.
pub const UPDATES: Family = family(
    "roundhouse_model_updates_total",
    Kind::Counter,
    &[],
    "Models whose instance groups were changed in place, without a load",
);
/// Copies that came and went while their model answered.
pub const COPIES: Family = family(
    "roundhouse_model_copies_total",
    Kind::Counter,
    &["change"],
    "Copies of models that answered meanwhile: added (since the queue cost more than a load), removed",
);
/// How long loads take.
pub const LOAD_SECONDS: Family = family(
    "roundhouse_model_load_seconds",
    Kind::Histogram,
    &[],
    "Duration of successful model loads, from resolve to ready, in seconds",
);
/// Models that can answer at once.
pub const RESIDENT_MODELS: Family =
    family("roundhouse_models_resident", Kind::Gauge, &[], "Models in memory and ready");
/// Time requests spent waiting for a load.
pub const LOAD_WAIT_SECONDS: Family = family(
    "roundhouse_load_wait_seconds",
    Kind::Histogram,
    &[],
    "Time a request waited for its model to be loaded, in seconds; requests for resident models are not in it",
);

/// Loads by where the model's files came from.
pub const LOADS_BY_SOURCE: Family = family(
    "roundhouse_model_loads_by_source_total",
    Kind::Counter,
    &["source"],
    "Successful model loads by the nearest tier their files were on: host, disk, remote",
);
/// How long the parts of loads take.
pub const LOAD_PHASE_SECONDS: Family = family(
    "roundhouse_load_phase_seconds",
    Kind::Histogram,
    &["phase"],
    "Duration of the parts of model loads, in seconds: resolve, fetch (with unpacking), wait (for a turn and room), initialise, \
     warm_up",
);
/// Bytes that came from the repository.
pub const FETCHED_BYTES: Family =
    family("roundhouse_fetched_bytes_total", Kind::Counter, &[], "Bytes fetched from the model repository");
/// Fetches by how they ended.
pub const FETCHES: Family = family(
    "roundhouse_fetches_total",
    Kind::Counter,
    &["outcome"],
    "Fetches of models to disk by outcome: ok, failed, cancelled (nobody waited any more)",
);
/// Models that left a tier.
pub const EVICTIONS: Family = family(
    "roundhouse_evictions_total",
    Kind::Counter,
    &["tier", "reason"],
    "Models that left a tier: for room, after an overrun (more in use than booked), transient (not to be kept), deleted \
     (from the repository), unload (asked for), lost (its device cannot be used any more)",
);
/// How long what left had been there.
pub const EVICTION_AGE_SECONDS: Family = family(
    "roundhouse_eviction_age_seconds",
    Kind::Histogram,
    &["tier"],
    "Time an evicted model had been on its tier, in seconds",
);
/// Evictions that least-recently-used would have made otherwise.
pub const EVICTIONS_UNLIKE_LRU: Family = family(
    "roundhouse_evictions_unlike_lru_total",
    Kind::Counter,
    &["tier"],
    "Evictions of another model than the least recently used one",
);
/// Requests by whether their model was there.
pub const LOOKUPS: Family = family(
    "roundhouse_model_lookups_total",
    Kind::Counter,
    &["outcome"],
    "Requests for a model by outcome: hit (it was in memory), miss (it had to be loaded)",
);
/// Time loads spent waiting for room.
pub const ROOM_WAIT_SECONDS: Family = family(
    "roundhouse_room_wait_seconds",
    Kind::Histogram,
    &[],
    "Time a load waited until there was room on its device, in seconds",
);
/// Bytes a tier may hold.
pub const TIER_LIMIT: Family =
    family("roundhouse_tier_limit_bytes", Kind::Gauge, TIER, "Bytes that models may take on a tier");
/// Bytes models take on a tier.
pub const TIER_BOOKED: Family =
    family("roundhouse_tier_booked_bytes", Kind::Gauge, TIER, "Bytes booked for models on a tier");
/// Models on a tier.
pub const TIER_MODELS: Family = family("roundhouse_tier_models", Kind::Gauge, TIER, "Models on a tier");
/// Loads that wait for their turn or for room.
pub const LOADS_WAITING: Family =
    family("roundhouse_loads_waiting", Kind::Gauge, &[], "Loads that wait for their turn or for room now");
/// What became of traces of requests.
pub const TRACES: Family = family(
    "roundhouse_traces_total",
    Kind::Counter,
    &["outcome"],
    "Traces of requests by outcome: written (to the file, or taken by the collector), dropped (more were made than could \
     be written), failed (the file could not be written, or the collector did not take them)",
);
/// A GPU's memory.
pub const GPU_MEMORY_TOTAL: Family =
    family("nv_gpu_memory_total_bytes", Kind::Gauge, GPU, "GPU total memory, in bytes");
/// A GPU's memory in use.
pub const GPU_MEMORY_USED: Family =
    family("nv_gpu_memory_used_bytes", Kind::Gauge, GPU, "GPU memory in use by anybody, in bytes");
/// How busy a GPU is.
pub const GPU_UTILIZATION: Family = family(
    "nv_gpu_utilization",
    Kind::Gauge,
    GPU,
    "GPU utilization (part of the last sample in which a kernel ran), 0.0 to 1.0",
);
/// What a GPU takes.
pub const GPU_POWER_USAGE: Family =
    family("nv_gpu_power_usage", Kind::Gauge, GPU, "GPU power usage, in watts; of the whole GPU for a MIG device");
/// What a GPU may take.
pub const GPU_POWER_LIMIT: Family =
    family("nv_gpu_power_limit", Kind::Gauge, GPU, "GPU power limit, in watts; of the whole GPU for a MIG device");
/// What a GPU has taken.
pub const GPU_ENERGY: Family = family(
    "nv_energy_consumption",
    Kind::Counter,
    GPU,
    "GPU energy consumption since the driver was loaded, in joules; of the whole GPU for a MIG device",
);
/// How busy a GPU's memory is.
pub const GPU_MEMORY_UTILIZATION: Family = family(
    "roundhouse_gpu_memory_utilization",
    Kind::Gauge,
    GPU,
    "Part of the last sample in which a GPU's memory was read or written, 0.0 to 1.0",
);
/// How warm a GPU is.
pub const GPU_TEMPERATURE: Family =
    family("roundhouse_gpu_temperature_celsius", Kind::Gauge, GPU, "Temperature of a GPU, in degrees Celsius");
/// Whether a GPU is well.
pub const GPU_HEALTHY: Family = family(
    "roundhouse_gpu_healthy",
    Kind::Gauge,
    GPU,
    "1 where nothing speaks against a GPU; 0 after it was lost, a critical XID, or uncorrectable errors of its memory",
);

/// What autoscalers go by.
pub const SCALE_PRESSURE: Family = family(
    "roundhouse_scale_pressure",
    Kind::Gauge,
    &[],
    "Requests that wait for a load or for a thread, for each place that could serve one, mean of the last minute; 0 is idle, \
     1 is one behind each place",
);
/// Requests that wait now.
pub const REQUESTS_WAITING: Family = family(
    "roundhouse_requests_waiting",
    Kind::Gauge,
    &["for"],
    "Requests that wait now, for: load (their model's), turn (an instance or a thread; not those that wait for company in a \
     batch)",
);
/// Time requests waited for loads.
pub const LOAD_WAITED: Family = family(
    "roundhouse_load_waited_seconds_total",
    Kind::Counter,
    &[],
    "Seconds that requests have waited for loads, all together, those that still wait included",
);
/// Time requests were in queues.
pub const QUEUED: Family = family(
    "roundhouse_queue_seconds_total",
    Kind::Counter,
    &[],
    "Seconds that answered requests were in queues, all together",
);
/// Time threads of a device ran models.
pub const EXECUTOR_BUSY: Family = family(
    "roundhouse_executor_busy_seconds_total",
    Kind::Counter,
    &["device"],
    "Seconds that threads of a device ran models, all together",
);
/// Threads of a device.
pub const EXECUTOR_THREADS: Family =
    family("roundhouse_executor_threads", Kind::Gauge, &["device"], "Threads of a device that run models");
/// The part of them that runs models.
pub const EXECUTOR_BUSY_SHARE: Family = family(
    "roundhouse_executor_busy_share",
    Kind::Gauge,
    &["device"],
    "Part of a device's threads that ran models, mean of the last minute, 0 to 1",
);
/// Requests whose model was in memory.
pub const HIT_RATIO: Family = family(
    "roundhouse_model_hit_ratio",
    Kind::Gauge,
    &[],
    "Part of the last minute's requests whose model was in memory, 0 to 1; absent where there was no request",
);
/// How long models stay.
pub const CHURN_AGE: Family = family(
    "roundhouse_churn_age_seconds",
    Kind::Gauge,
    &["tier"],
    "Mean time that what left a tier for want of room had been on it, of the last ten minutes, in seconds; absent where \
     nothing did",
);

/// Every family, in the order of the page.
pub const ALL: &[Family] = &[
    REQUEST_SUCCESS,
    REQUEST_FAILURE,
    INFERENCE_COUNT,
    EXECUTION_COUNT,
    REQUEST_DURATION,
    QUEUE_DURATION,
    COMPUTE_INPUT_DURATION,
    COMPUTE_INFER_DURATION,
    COMPUTE_OUTPUT_DURATION,
    PENDING_REQUESTS,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_HIT_DURATION,
    CACHE_MISS_DURATION,
    MODEL_LOAD_DURATION,
    host::CPU_MEMORY_TOTAL,
    host::CPU_MEMORY_USED,
    host::CPU_UTILIZATION,
    GPU_MEMORY_TOTAL,
    GPU_MEMORY_USED,
    GPU_UTILIZATION,
    GPU_POWER_USAGE,
    GPU_POWER_LIMIT,
    GPU_ENERGY,
    GPU_MEMORY_UTILIZATION,
    GPU_TEMPERATURE,
    GPU_HEALTHY,
    LOADS,
    LOADS_BY_SOURCE,
    UNLOADS,
    UNLOAD_SECONDS,
    UPDATES,
    COPIES,
    LOAD_SECONDS,
    LOAD_PHASE_SECONDS,
    RESIDENT_MODELS,
    sleep::ASLEEP_MODELS,
    sleep::SLEEPS,
    sleep::SLEEP_BYTES,
    sleep::SLEEP_SECONDS,
    sleep::WAKES,
    sleep::WAKE_BYTES,
    sleep::WAKE_SECONDS,
    sleep::PINNED,
    LOOKUPS,
    LOAD_WAIT_SECONDS,
    LOADS_WAITING,
    ROOM_WAIT_SECONDS,
    FETCHES,
    FETCHED_BYTES,
    EVICTIONS,
    EVICTION_AGE_SECONDS,
    EVICTIONS_UNLIKE_LRU,
    TIER_LIMIT,
    TIER_BOOKED,
    TIER_MODELS,
    RESPONSE_CACHE_BYTES,
    TRACES,
    SCALE_PRESSURE,
    REQUESTS_WAITING,
    LOAD_WAITED,
    QUEUED,
    EXECUTOR_BUSY,
    EXECUTOR_THREADS,
    EXECUTOR_BUSY_SHARE,
    HIT_RATIO,
    CHURN_AGE,
    host::DISK_TOTAL,
    host::DISK_USED,
];

/// Bucket edges of durations of loads and of waiting for them, in seconds.
pub const LOAD_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Bucket edges of how long models stay on a tier, in seconds: a second to a week.
pub const AGE_BUCKETS: &[f64] = &[1.0, 10.0, 60.0, 300.0, 1_800.0, 3_600.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0];

#[cfg(test)]
mod tests;
