//! What CloudWatch is told of requests and levels, where it is told anything.

use std::time::Instant;

use super::InferenceServer;
use crate::device::disk::disk_space;
use crate::error::{Error, ErrorKind};
use crate::inference::DeviceId;
use crate::metrics::observations::{Observations, Observed};

/// Whose fault an error is, as CloudWatch counts them: the caller's (4XX), ours (5XX), or ours in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Caller,
    Server,
    Model,
}

const fn fault(kind: ErrorKind) -> Fault {
    match kind {
        ErrorKind::NotFound
        | ErrorKind::AlreadyLoaded
        | ErrorKind::InvalidArgument
        | ErrorKind::TooLarge
        | ErrorKind::Overloaded => Fault::Caller,
        ErrorKind::BackendFailed => Fault::Model,
        ErrorKind::NotReady
        | ErrorKind::DeadlineExceeded
        | ErrorKind::OutOfDeviceMemory
        | ErrorKind::OutOfDisk
        | ErrorKind::Unsupported
        | ErrorKind::RepositoryFailed
        | ErrorKind::Internal => Fault::Server,
    }
}

fn observe_end(observations: &Observations, error: Option<&Error>) {
    let fault = error.map(|error| fault(error.kind()));
    let is = |wanted: bool| f64::from(u8::from(wanted));
    observations.observe(Observed::Invocations, 1.0);
    observations.observe(Observed::Invocation4XXErrors, is(fault == Some(Fault::Caller)));
    observations.observe(Observed::Invocation5XXErrors, is(matches!(fault, Some(Fault::Server | Fault::Model))));
    observations.observe(Observed::InvocationModelErrors, is(fault == Some(Fault::Model)));
}

impl InferenceServer {
    /// What is observed for CloudWatch.
    #[must_use]
    pub fn observations(&self) -> std::sync::Arc<Observations> {
        std::sync::Arc::clone(&self.0.metrics.observations)
    }

    pub(super) fn is_observed(&self) -> bool {
        self.0.metrics.observations.is_wanted()
    }

    /// A request that `arrived`, came to its model at `begin`, and ended now.
    pub(super) fn observe_invocation(&self, arrived: Instant, begin: Instant, error: Option<&Error>) {
        let observations = &self.0.metrics.observations;
        observations.observe_time(Observed::ModelLatency, begin.elapsed());
        observations.observe_time(Observed::OverheadLatency, begin.saturating_duration_since(arrived));
        observe_end(observations, error);
    }

    /// A request whose model could not be had.
    pub(super) fn observe_failure(&self, error: &Error) {
        if self.is_observed() {
            observe_end(&self.0.metrics.observations, Some(error));
        }
    }

    /// A request whose answers come by and by: when they end, and how, is their reader's to know.
    pub(super) fn observe_stream(&self) {
        if self.is_observed() {
            observe_end(&self.0.metrics.observations, None);
        }
    }

    /// Observes how full and how busy things are now, and how many lookups were hits since the last call.
    #[expect(clippy::cast_precision_loss, reason = "CloudWatch counts in doubles")]
    pub fn observe_levels(&self) {
        let observations = &self.0.metrics.observations;
        observations.observe(Observed::LoadedModelCount, self.resident_names().len() as f64);
        let signals = self.signals();
        observations.observe(Observed::ScalePressure, signals.pressure);
        if let Some(cores) = signals.cores {
            observations.observe(Observed::CPUUtilization, cores.busy * 100.0);
        }
        let (hits, misses) = self.0.metrics.lookups();
        let told = std::mem::replace(&mut *self.0.told_lookups.lock(), (hits, misses));
        observations.observe_many(Observed::ModelCacheHit, 1.0, hits.saturating_sub(told.0));
        observations.observe_many(Observed::ModelCacheHit, 0.0, misses.saturating_sub(told.1));
        let percent = |used: u64, total: u64| used as f64 / total.max(1) as f64 * 100.0;
        if let Ok(memory) = self.0.monitor.memory(DeviceId::Cpu) {
            observations.observe(Observed::MemoryUtilization, percent(memory.used, memory.total));
        }
        if let Some(space) = disk_space(&self.0.cache_directory) {
            observations.observe(Observed::DiskUtilization, percent(space.used, space.total));
        }
        // Of several GPUs the sum, as SageMaker has it: 0 to 100 for each.
        let gpus: Vec<_> = self.0.monitor.gpus().into_iter().map(|gpu| DeviceId::Gpu(gpu.index)).collect();
        let memory: Vec<_> = gpus.iter().filter_map(|gpu| self.0.monitor.memory(*gpu).ok()).collect();
        if !memory.is_empty() {
            let sum = memory.iter().map(|memory| percent(memory.used, memory.total)).sum();
            observations.observe(Observed::GPUMemoryUtilization, sum);
        }
        let busy: Vec<_> = gpus.iter().filter_map(|gpu| self.0.monitor.utilization(*gpu)).collect();
        if !busy.is_empty() {
            observations.observe(Observed::GPUUtilization, busy.iter().sum::<f64>() * 100.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invocation_is_counted_once_and_its_errors_by_whose_fault_they_are() {
        let observations = Observations::default();
        observations.want();
        let errors = [
            None,
            Some(Error::not_found("no such model")),
            Some(Error::new(ErrorKind::Overloaded, "full")),
            Some(Error::new(ErrorKind::BackendFailed, "torn")),
            Some(Error::internal("ours")),
        ];
        for error in &errors {
            observe_end(&observations, error.as_ref());
        }
        let sums: Vec<_> =
            observations.take().into_iter().map(|(metric, set)| (metric.name(), set.count, set.sum)).collect();
        let expected = [
            ("Invocations", 5, 5.0),
            ("Invocation4XXErrors", 5, 2.0),
            ("Invocation5XXErrors", 5, 2.0),
            ("InvocationModelErrors", 5, 1.0),
        ];
        assert_eq!(sums, expected);
    }
}
